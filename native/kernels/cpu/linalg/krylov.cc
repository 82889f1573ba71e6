#include "kernels/cpu/linalg/krylov.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/linalg/float_block.h"
#include "tensor/errors.h"

namespace balora {
namespace {

constexpr int64_t kDenseOrder = 192;       // up to here a dense eigen-solver is as fast
constexpr double kEigenTolerance = 1e-12;  // residual over the largest eigenvalue

// A matrix that grows by columns: storage for `capacity` of them, `cols` in use.
struct Basis {
  Basis(int64_t n, int64_t cap) : capacity(cap), storage(n, cap) {}
  MatrixRef ref() const { return {storage.values.data(), BALORA_F64, capacity, 1}; }
  void append(const Matrix& block) {
    for (int64_t i = 0; i < storage.rows; ++i) {
      std::copy_n(block.row(i), block.cols, storage.row(i) + cols);
    }
    cols += block.cols;
  }
  void assign(const Matrix& block) {
    cols = 0;
    append(block);
  }
  int64_t capacity, cols = 0;
  Matrix storage;
};

// Q^T B for the columns in use.
Matrix against(const Context* ctx, const Basis& q, const MatrixRef& b, int64_t cols) {
  Matrix out(q.cols, cols);
  product_f64(ctx, q.cols, cols, q.storage.rows, q.ref().transposed(), b, out.values.data(), cols);
  return out;
}

Matrix combine(const Context* ctx, const Basis& q, const Matrix& weights) {
  Matrix out(q.storage.rows, weights.cols);
  product_f64(ctx, out.rows, out.cols, q.cols, q.ref(), weights.ref(), out.values.data(), out.cols);
  return out;
}

// Orthonormal columns, orthogonal to the basis. Three passes: where a column lies in the basis to
// rounding, the first normalisation blows up noise, and the later passes make it orthogonal again.
Matrix orthonormal_to(const Context* ctx, const Basis& q, Matrix block) {
  const int passes = q.cols ? 3 : 1;
  for (int pass = 0; pass < passes; ++pass) {
    if (q.cols) {
      add(block, combine(ctx, q, against(ctx, q, block.ref(), block.cols)), -1);
    }
    block = thin_qr(ctx, block).q;
  }
  return block;
}

// Rayleigh-Ritz: the `keep` leading pairs of the operator within the basis; *images =
// A times their vectors.
RitzPairs ritz(const Context* ctx, const Basis& q, const Basis& aq, int64_t keep, Matrix* images) {
  Matrix projected = against(ctx, q, aq.ref(), aq.cols);
  symmetrise(projected);
  keep = std::min(keep, q.cols);
  EighResult leading = leading_pairs(symmetric_eigen(projected), keep);
  RitzPairs pairs;
  pairs.values = std::move(leading.values);
  pairs.vectors = combine(ctx, q, leading.vectors);
  *images = combine(ctx, aq, leading.vectors);
  pairs.residuals = column_norms(residual_of(*images, pairs.vectors, pairs.values));
  pairs.exact = q.cols == q.storage.rows;
  return pairs;
}

}  // namespace

RitzPairs block_krylov(const Context* ctx, int64_t n, const KrylovOptions& options,
                       const ApplyFn& apply, const ConvergedFn& test, bool* converged) {
  const int64_t block = std::min(options.block, n);
  const int64_t capacity = std::min(n, block * (options.blocks + 1));
  Basis q(n, capacity), aq(n, capacity);
  Matrix next = normal_matrix(ctx, n, block, options.seed);
  RitzPairs pairs;
  for (int cycle = 0; cycle < options.max_cycles; ++cycle) {
    while (q.cols < capacity) {
      const int64_t room = capacity - q.cols;
      if (next.cols > room) next = leading_columns(next, room);
      next = orthonormal_to(ctx, q, std::move(next));
      q.append(next);
      next = apply(next);
      aq.append(next);
    }
    Matrix images;
    pairs = ritz(ctx, q, aq, block, &images);
    *converged = pairs.exact || test(pairs);
    if (*converged) return pairs;
    next = residual_of(images, pairs.vectors, pairs.values);
    q.assign(pairs.vectors);
    aq.assign(images);
  }
  return pairs;
}

RitzPairs leading_eigenpairs(const Context* ctx, const Matrix& a, int64_t k) {
  const int64_t n = a.rows, block = krylov_block(k);
  if (n > kDenseOrder && block * 8 <= n) {
    bool converged = false;
    const KrylovOptions options{block};
    RitzPairs pairs = block_krylov(
        ctx, n, options, [&](const Matrix& x) { return product(ctx, a, x); },
        [&](const RitzPairs& p) {
          const auto worst = *std::max_element(p.residuals.begin(), p.residuals.begin() + k);
          return worst <= kEigenTolerance * p.values[0];
        },
        &converged);
    if (converged) {
      pairs.values.resize(static_cast<size_t>(k));
      pairs.vectors = leading_columns(pairs.vectors, k);
      return pairs;
    }
  }
  EighResult leading = leading_pairs(symmetric_eigen(a), k);
  RitzPairs pairs;
  pairs.exact = true;
  pairs.values = std::move(leading.values);
  pairs.vectors = std::move(leading.vectors);
  return pairs;
}

SvdResult randomized_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n, int64_t rank,
                         int64_t niter, int64_t oversample, uint64_t seed) {
  if (m < n) {
    return transposed(randomized_svd(ctx, a.transposed(), n, m, rank, niter, oversample, seed));
  }
  const int64_t width = std::min(n, rank + oversample);
  Matrix q = thin_qr(ctx, normal_matrix(ctx, n, width, seed)).q;
  // Each iteration is a power of A^T A; the last product with A is svd_within()'s.
  for (int64_t i = 0; i <= niter; ++i) {
    const Matrix image = thin_qr(ctx, product(ctx, a, m, q)).q;
    q = thin_qr(ctx, product(ctx, a.transposed(), n, image)).q;
  }
  return svd_within(ctx, a, m, q, std::min(rank, n));
}

SvdResult converged_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n, int64_t rank,
                        int64_t oversample, uint64_t seed) {
  if (m < n) return transposed(converged_svd(ctx, a.transposed(), n, m, rank, oversample, seed));
  rank = std::min(rank, n);
  const int64_t block = std::min(n, rank + oversample);
  if (n <= kDenseOrder / 2 || block * 5 > n) {
    return triplets(thin_svd(ctx, widened(a, m, n)), 0, rank);
  }
  CapturedEnergy energy(rank, squared_norm(widened(a, m, n).values.data(), m * n));
  bool converged = false;
  KrylovOptions options{block};
  options.blocks = 2;
  options.seed = seed;
  options.max_cycles = 200;
  const RitzPairs pairs = block_krylov(
      ctx, n, options,
      [&](const Matrix& x) { return product(ctx, a.transposed(), n, product(ctx, a, m, x)); },
      [&](const RitzPairs& pairs) { return energy.converged(pairs.values); }, &converged);
  if (!converged) throw NativeError("randomized_svd: the captured energy did not converge");
  return svd_within(ctx, a, m, pairs.vectors, rank);
}

}  // namespace balora
