// The last singular triplets of a matrix, in f64 and without a complete decomposition.
//
// They are the first eigenvectors of K = (R^T R)^-1 = X X^T, where A = Q R and X = R^-1. A subspace
// iteration finds these soon, since K spreads apart the small singular values that lie close
// together in A. Nearly all of the work is in products:
//   1. X from the Gram matrix of A's columns, by blocks. K is never formed.
//   2. Chebyshev polynomials of K, whose wanted part is large and the rest small: in f32 first, as
//      far as that goes, then in f64 with the Rayleigh-Ritz step, until every wanted vector is an
//      eigenvector to within kTolerance.
//   3. A Gram matrix squares the condition number. Where its rounding shows, inverse iterations
//      take their residual from A itself; where it hides the values, the columns of A X are made
//      orthonormal once more (CholeskyQR, Fukaya et al. 2014), their factor is multiplied in, and
//      2. begins again.
//   4. The decomposition of A V, which has only as many columns as are wanted.
#pragma once
#include <cstdint>

#include "kernels/cpu/linalg/dense.h"

namespace balora {

// A (m,n) -> the last `rank` triplets, s descending. A small matrix, a large rank and a matrix that
// is singular to f64's precision are decomposed completely.
// @throws NativeError for a matrix that is not finite
SvdResult trailing_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n, int64_t rank,
                       uint64_t seed);

// The same of the complete decomposition.
SvdResult complete_trailing_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n,
                                int64_t rank);

}  // namespace balora
