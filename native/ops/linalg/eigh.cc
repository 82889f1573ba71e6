// Eigenvalues and eigenvectors of a symmetric matrix:
//   A = V diag(w) V^T
// Backward, symmetrised, with F_ij = 1 / (w_j - w_i) off the diagonal:
//   dA = V (diag(dw) + F o (V^T dV)) V^T
// Equal eigenvalues have no gradient of their vectors: their F is taken as 0.
#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

std::tuple<Tensor, Tensor> eigh(const Tensor& a) {
  check_matrix("eigh", a);
  const int64_t n = a.dim(0);
  check_shape("eigh", "a", a, {n, n}, "(N,N)");
  const Tensor x = contiguous(a.detach());
  const Tensor w = Tensor::empty(a.engine(), {n}, accumulator_dtype(a.dtype()));
  const Tensor v = empty_like(x);
  using O = balora_eigh;
  launch<O>("eigh", &KernelTable::eigh, {{&O::a, x}}, {{&O::values, w}, {&O::vectors, v}});
  record("eigh", {a}, {w, v},
         [w = Saved(w), v = Saved(v)](std::span<const Tensor> dy, GradSink& sink) {
           const Tensor v_ = v.get();
           const Tensor da = empty_like(v_);
           const auto flat = [](const Tensor& t) { return t.defined() ? contiguous(t) : t; };
           using O = balora_eigh_backward;
           launch<O>("eigh_backward", &KernelTable::eigh_backward,
                     {{&O::values, w.get()},
                      {&O::vectors, v_},
                      {&O::dvalues, flat(dy[0])},
                      {&O::dvectors, flat(dy[1])}},
                     {{&O::da, da}});
           sink.add(0, da);
         });
  return {w, v};
}

}  // namespace balora
