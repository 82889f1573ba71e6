// Low-rank SVD from products with A and A^T only (kernels/cpu/krylov.h), from one seed on every
// device.
#include <algorithm>

#include "engine/launch.h"
#include "linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

std::tuple<Tensor, Tensor, Tensor> randomized_svd(const Tensor& a, int64_t rank, int64_t niter,
                                                  int64_t oversample, int64_t seed) {
  check_matrix("randomized_svd", a);
  const int64_t m = a.dim(0), n = a.dim(1);
  if (rank < 1 || rank > std::min(m, n)) {
    throw ArgumentError(concat("randomized_svd: rank must be 1..", std::min(m, n), " for ",
                               a.shape().to_string(), ", got ", rank));
  }
  if (oversample < 0) {
    throw ArgumentError(concat("randomized_svd: oversample must be >= 0, got ", oversample));
  }
  if (grad_wanted({a})) {
    throw ArgumentError(
        "randomized_svd: has no gradient; call it under noGrad() or on a detached tensor");
  }
  const Tensor x = contiguous(a.detach());
  const Tensor u = Tensor::empty(a.engine(), {m, rank}, accumulator_dtype(a.dtype()));
  const Tensor s = Tensor::empty(a.engine(), {rank}, accumulator_dtype(a.dtype()));
  const Tensor vt = Tensor::empty(a.engine(), {rank, n}, accumulator_dtype(a.dtype()));
  launch("randomized_svd", {x}, {u, s, vt}, [=](Launch& l) {
    return l.kernels->randomized_svd(l.ctx, l.in(0), l.out(0), l.out(1), l.out(2), niter,
                                     oversample, static_cast<uint64_t>(seed));
  });
  return {u, s, vt};
}

}  // namespace balora
