// The singular values of logits H W^T from the Gram matrices of their factors.
#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"

namespace balora {

Tensor gram_spectrum(const Tensor& m, const Tensor& g) {
  check_matrix("gram_spectrum", m);
  check_gram("gram_spectrum", "m", m, m.dim(1));
  check_gram("gram_spectrum", "g", g, m.dim(1));
  refuse_gradient("gram_spectrum", m);
  refuse_gradient("gram_spectrum", g);
  Tensor s = Tensor::empty(m.engine(), {m.dim(0)}, DType::kF64);
  using O = balora_gram_spectrum;
  launch<O>("gram_spectrum", &KernelTable::gram_spectrum,
            {{&O::m, contiguous(m.detach())}, {&O::g, contiguous(g.detach())}}, {{&O::s, s}});
  return s;
}

}  // namespace balora
