// The thin QR factorisation A = Q R. Backward for M >= N rows (Walter and Lehmann 2010), where sym
// mirrors the lower triangle:
//   M = R dR^T - dQ^T Q
//   dA = (dQ + Q sym(M)) R^-T
#include <algorithm>

#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

std::tuple<Tensor, Tensor> qr(const Tensor& a) {
  check_matrix("qr", a);
  const int64_t m = a.dim(0), n = a.dim(1), k = std::min(m, n);
  if (m < n && grad_wanted({a})) {
    throw UnsupportedError(concat("qr: the gradient needs at least as many rows as columns, got ",
                                  a.shape().to_string()));
  }
  const Tensor x = contiguous(a.detach());
  const Tensor q = Tensor::empty(a.engine(), {m, k}, a.dtype());
  const Tensor r = Tensor::empty(a.engine(), {k, n}, a.dtype());
  using O = balora_qr;
  launch<O>("qr", &KernelTable::qr, {{&O::a, x}}, {{&O::q, q}, {&O::r, r}});
  record("qr", {a}, {q, r},
         [q = Saved(q), r = Saved(r)](std::span<const Tensor> dy, GradSink& sink) {
           const Tensor q_ = q.get();
           const Tensor da = empty_like(q_);
           const auto flat = [](const Tensor& t) { return t.defined() ? contiguous(t) : t; };
           using O = balora_qr_backward;
           launch<O>("qr_backward", &KernelTable::qr_backward,
                     {{&O::q, q_}, {&O::r, r.get()}, {&O::dq, flat(dy[0])}, {&O::dr, flat(dy[1])}},
                     {{&O::da, da}});
           sink.add(0, da);
         });
  return {q, r};
}

}  // namespace balora
