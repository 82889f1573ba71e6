// Leading eigenpairs of a large symmetric positive semidefinite operator, and low-rank SVDs built
// on products with A and A^T only. The basis is f64 and fully reorthogonalised; subspace iteration
// with a handful of sweeps is 25-34 % off in the gradient of the SVD regularizer, where
// neighbouring singular values differ by less than a per cent.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cpu/linalg/dense.h"
#include "kernels/shared/krylov.h"

namespace balora {

using RitzPairs = RitzPairsOf<Matrix>;

// y = A x, x and y (n, any).
using ApplyFn = std::function<Matrix(const Matrix& x)>;
// Asked after each Rayleigh-Ritz step.
using ConvergedFn = std::function<bool(const RitzPairs&)>;

// Block Krylov iteration with thick restart. Returns the last Ritz pairs; *converged says whether
// the test held.
RitzPairs block_krylov(const Context* ctx, int64_t n, const KrylovOptions& options,
                       const ApplyFn& apply, const ConvergedFn& test, bool* converged);

// Columns of a block that k pairs are wanted of: some more, so that the last of the k converges,
// and whole tiles of product_f64(), which takes as long for part of a tile as for a whole one.
inline int64_t krylov_block(int64_t k) {
  constexpr int64_t kMore = 6, kTile = 8;
  return (k + kMore + kTile - 1) / kTile * kTile;
}

// The k largest eigenvalues (descending) of a symmetric positive semidefinite matrix, with vectors
// (n,k), to f64 accuracy: dense where n is small or k is not, else block Krylov, and dense again
// should that stall.
RitzPairs leading_eigenpairs(const Context* ctx, const Matrix& a, int64_t k);

// A (m,n) ~ U diag(s) Vt of the given rank (clamped to min(m,n)) after Halko, Martinsson and Tropp:
// niter power iterations with orthonormalisation after every product, rank + oversample columns.
SvdResult randomized_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n, int64_t rank,
                         int64_t niter, int64_t oversample, uint64_t seed);

// The same until the captured energy has converged: |A - U S Vt|_F <= optimum (1 + 1e-5) + 1e-6
// |A|_F. The subspace itself converges far more slowly and is not what a
// low-rank factorisation needs.
SvdResult converged_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n, int64_t rank,
                        int64_t oversample, uint64_t seed);

}  // namespace balora
