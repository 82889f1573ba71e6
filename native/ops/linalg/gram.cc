// Gram matrices in f64, and the singular values of a product of two factors from theirs.
#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

void refuse_gradient(const char* op, const Tensor& a) {
  if (grad_wanted({a})) {
    throw ArgumentError(
        concat(op, ": has no gradient; call it under noGrad() or on a detached tensor"));
  }
}

void check_gram(const char* op, const char* name, const Tensor& g, int64_t channels) {
  check_dtype(op, name, g, DType::kF64);
  check_shape(op, name, g, {channels, channels}, "(C,C)");
}

}  // namespace

Tensor gram(const Tensor& a) {
  check_matrix("gram", a);
  refuse_gradient("gram", a);
  const Tensor g = Tensor::empty(a.engine(), {a.dim(1), a.dim(1)}, DType::kF64);
  using O = balora_gram;
  launch<O>("gram", &KernelTable::gram, {{&O::a, contiguous(a.detach())}}, {{&O::g, g}},
            {.accumulate = 0});
  return g;
}

void gram_add(Tensor& g, const Tensor& a) {
  check_matrix("gram_add", a);
  check_gram("gram_add", "g", g, a.dim(1));
  refuse_gradient("gram_add", a);
  if (!g.is_contiguous()) throw ArgumentError("gram_add: g must be contiguous");
  prepare_in_place("gram_add", g);
  using O = balora_gram;
  launch_in_place<O>("gram_add", &KernelTable::gram, {{&O::a, contiguous(a.detach())}},
                     {{&O::g, g}}, {.accumulate = 1});
}

Tensor gram_spectrum(const Tensor& m, const Tensor& g) {
  check_matrix("gram_spectrum", m);
  check_gram("gram_spectrum", "m", m, m.dim(1));
  check_gram("gram_spectrum", "g", g, m.dim(1));
  refuse_gradient("gram_spectrum", m);
  refuse_gradient("gram_spectrum", g);
  const Tensor s = Tensor::empty(m.engine(), {m.dim(0)}, DType::kF64);
  using O = balora_gram_spectrum;
  launch<O>("gram_spectrum", &KernelTable::gram_spectrum,
            {{&O::m, contiguous(m.detach())}, {&O::g, contiguous(g.detach())}}, {{&O::s, s}});
  return s;
}

}  // namespace balora
