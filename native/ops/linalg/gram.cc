// Gram matrices in f64.
#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

Tensor gram(const Tensor& a) {
  check_matrix("gram", a);
  refuse_gradient("gram", a);
  const Tensor g = Tensor::empty(a.engine(), {a.dim(1), a.dim(1)}, DType::kF64);
  using O = balora_gram;
  launch<O>("gram", &KernelTable::gram, {{&O::a, contiguous(decoded(a))}}, {{&O::g, g}},
            {.accumulate = 0});
  return g;
}

void gram_add(Tensor g, const Tensor& a) {
  check_matrix("gram_add", a);
  check_gram("gram_add", "g", g, a.dim(1));
  refuse_gradient("gram_add", a);
  if (!g.is_contiguous()) throw ArgumentError("gram_add: g must be contiguous");
  prepare_in_place("gram_add", g);
  using O = balora_gram;
  launch_in_place<O>("gram_add", &KernelTable::gram, {{&O::a, contiguous(a.detach())}},
                     {{&O::g, g}}, {.accumulate = 1});
}

}  // namespace balora
