// The steps of a subspace iteration in f32, for the leading eigenvectors of a symmetric operator:
// of A^T A (chebyshev_svd.h, pca_updates.cc), or of its inverse (trailing_svd.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "kernels/cpu/linalg/dense.h"
#include "kernels/cpu/linalg/float_block.h"

namespace balora {

// The columns of x become orthonormal, in order: Cholesky's way, with the Gram matrix in f64. False
// where they are not independent enough for that. z is a block of x's size, `wide` has room for its
// elements, `weights` for (columns,columns). x and z exchange their memory.
inline bool orthonormalise_columns(FloatBlock& x, FloatBlock& z, double* wide, float* weights) {
  constexpr double kSmallestPivot = 1e-10;  // of the Gram matrix with a unit diagonal
  Matrix factors;
  if (!orthonormal_weights(block_gram(x, wide), kSmallestPivot, &factors)) return false;
  block_times(x, factors, weights, z);
  std::swap(x.values, z.values);
  return true;
}

// q, of T_0, becomes T_d(G / half - 1) q, with y of T_1 and `scale` 2 / half. apply(x, y) sets y to
// G x. The blocks, of one size, exchange their memory.
template <typename Apply>
void chebyshev_steps(FloatBlock& q, FloatBlock& y, FloatBlock& z, float half, float scale,
                     int64_t degree, const Apply& apply) {
  for (int64_t d = 2; d <= degree; ++d) {
    apply(y, z);
    chebyshev_step(z, y, half, scale, &q);
    std::swap(q.values, y.values);
    std::swap(y.values, z.values);
  }
  std::swap(q.values, y.values);
}

// q becomes T_d(2 G / beta - 1) q, where beta is the smallest of the quotients: the polynomial is
// within 1 on [0, beta] and grows fast above it. y is G q before. Returns d, at most `most`, and
// smaller where the spectrum is wide: f32's noise grows along the largest vector.
template <typename Apply>
int64_t chebyshev_polynomial(FloatBlock& q, FloatBlock& y, FloatBlock& z,
                             const Quotients& quotients, int64_t most, const Apply& apply) {
  constexpr double kLargestGrowth = 2e7;  // of a column between two orthonormalisations
  const double spread = quotients.largest / quotients.smallest;
  const double growth = std::log(kLargestGrowth) / std::log(4 * spread);
  const int64_t degree = std::clamp<int64_t>(static_cast<int64_t>(growth), 1, most);
  const auto half = static_cast<float>(quotients.smallest / 2);
  chebyshev_step(y, q, half, 1 / half);
  chebyshev_steps(q, y, z, half, 2 / half, degree, apply);
  return degree;
}

}  // namespace balora
