// Gram matrices in f64.
#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

Tensor gram(const Tensor& a) {
  check_matrix("gram", a);
  refuse_gradient("gram", a);
  Tensor g = Tensor::empty(a.engine(), {a.dim(1), a.dim(1)}, DType::kF64);
  using O = balora_gram;
  launch<O>("gram", &KernelTable::gram, {{&O::a, contiguous(decoded(a))}}, {{&O::g, g}},
            {.accumulate = 0});
  return g;
}

namespace {

void check_sum(const char* op, Tensor& g, const Tensor& a) {
  check_matrix(op, a);
  check_gram(op, "g", g, a.dim(1));
  refuse_gradient(op, a);
  if (!g.is_contiguous()) throw ArgumentError(concat(op, ": g must be contiguous"));
  prepare_in_place(op, g);
}

}  // namespace

void gram_add(Tensor g, const Tensor& a) {
  check_sum("gram_add", g, a);
  using O = balora_gram;
  launch_in_place<O>("gram_add", &KernelTable::gram, {{&O::a, contiguous(a.detach())}},
                     {{&O::g, g}}, {.accumulate = 1});
}

void scaled_gram_add(Tensor g, const Tensor& a, const Tensor& scale) {
  constexpr const char* kOp = "scaled_gram_add";
  check_matrix(kOp, a);
  check_shape(kOp, "scale", scale, {a.dim(0)}, "(N)");
  check_dtype(kOp, "scale", scale, DType::kF32);
  refuse_gradient(kOp, scale);
  check_sum(kOp, g, a);
  using O = balora_gram;
  launch_in_place<O>(kOp, &KernelTable::gram,
                     {{&O::a, contiguous(a.detach())}, {&O::scale, contiguous(scale.detach())}},
                     {{&O::g, g}}, {.accumulate = 1});
}

}  // namespace balora
