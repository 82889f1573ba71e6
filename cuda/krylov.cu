// See krylov.cuh. With n rows, b columns of a block and c <= (blocks + 1) b of the basis, a cycle
// is blocks * (apply + 3 * (4 n c b + 8 n b^2)) flops in gemm() and one eigh of order c, which is
// what takes the time: 25 rounds a sweep for c = 414.
#include "krylov.cuh"

#include "eigen.cuh"
#include "philox.cuh"
#include "qr.cuh"

namespace balora::cuda {
namespace {

__global__ void fill_normals(double* to, int64_t count, uint64_t seed) {
  constexpr double kTurn = 6.283185307179586476925286766559;
  for (int64_t pair = thread_index(); 2 * pair < count; pair += thread_count()) {
    const PhiloxBlock block = philox(seed, static_cast<uint64_t>(pair), 0);
    const double radius = sqrt(-2 * log(1 - philox_double(block.word[0], block.word[1])));
    const double angle = kTurn * philox_double(block.word[2], block.word[3]);
    to[2 * pair] = radius * cos(angle);
    if (2 * pair + 1 < count) to[2 * pair + 1] = radius * sin(angle);
  }
}

// The last `keep` of the ascending pairs, descending: weights (order,keep), values (keep).
__global__ void take_leading(const double* vectors, const double* ascending, int64_t order,
                             int64_t keep, double* weights, double* values) {
  for (int64_t at = thread_index(); at < order * keep; at += thread_count()) {
    const int64_t i = at / keep, j = at % keep;
    weights[at] = vectors[i * order + order - 1 - j];
    if (i == 0) values[j] = ascending[order - 1 - j];
  }
}

// images -= vectors diag(values); lengths[j] = |column j| of that. A warp a column.
__global__ void take_residuals(const double* vectors, const double* values, int64_t n, int64_t keep,
                               double* images, double* lengths) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t j = thread_index() / kWarp;
  if (j >= keep) return;
  double square = 0;
  for (int64_t i = lane; i < n; i += kWarp) {
    const double rest = images[i * keep + j] - values[j] * vectors[i * keep + j];
    images[i * keep + j] = rest;
    square += rest * rest;
  }
  square = warp_reduce(square);
  if (lane == 0) lengths[j] = sqrt(square);
}

// A matrix that grows by columns: storage for `capacity` of them, `cols` in use.
struct Basis {
  Basis(Scratch& scratch, int64_t n, int64_t capacity) : storage(scratch, n, capacity) {}
  Factor factor(bool transposed = false) const {
    return {storage.data(), storage.cols, transposed};
  }
  void append(Context* ctx, const Dense& block) {
    convert_matrix(ctx, block.rows, block.cols, block.data(), BALORA_F64, block.cols,
                   storage.data() + cols, BALORA_F64, storage.cols);
    cols += block.cols;
  }
  Dense storage;
  int64_t cols = 0;
};

// Q^T B and Q W for the columns in use.
Dense against(Scratch& scratch, const Basis& q, const Factor& b, int64_t cols) {
  Dense out(scratch, q.cols, cols);
  multiply(scratch.ctx(), {q.cols, cols, q.storage.rows}, 1, q.factor(true), b, 0, out.data(),
           cols);
  return out;
}
Dense combine(Scratch& scratch, const Basis& q, const Dense& weights) {
  Dense out(scratch, q.storage.rows, weights.cols);
  multiply(scratch.ctx(), {out.rows, out.cols, q.cols}, 1, q.factor(),
           {weights.data(), weights.cols}, 0, out.data(), out.cols);
  return out;
}

// Orthonormal columns, orthogonal to the basis. Three passes: where a column lies in the basis to
// rounding, the first normalisation blows up noise, and the later passes make it orthogonal again.
Dense orthonormal_to(Scratch& scratch, const Basis& q, Dense block) {
  const int passes = q.cols ? 3 : 1;
  for (int pass = 0; pass < passes; ++pass) {
    if (q.cols) {
      const Dense inside = against(scratch, q, {block.data(), block.cols}, block.cols);
      multiply(scratch.ctx(), {block.rows, block.cols, q.cols}, -1, q.factor(),
               {inside.data(), inside.cols}, 1, block.data(), block.cols);
    }
    block = std::move(thin_qr(scratch, block).q);
  }
  return block;
}

Dense leading_columns(Scratch& scratch, const Dense& a, int64_t count) {
  Dense out(scratch, a.rows, count);
  convert_matrix(scratch.ctx(), a.rows, count, a.data(), BALORA_F64, a.cols, out.data(), BALORA_F64,
                 count);
  return out;
}

// Rayleigh-Ritz: the `keep` leading pairs of the operator within the basis. *images = A times their
// vectors, *rest = images - vectors diag(values).
RitzPairs ritz(Scratch& scratch, const Basis& q, const Basis& aq, int64_t keep, const char* row,
               Dense* images, Dense* rest) {
  Context* ctx = scratch.ctx();
  keep = std::min(keep, q.cols);
  const Dense projected = against(scratch, q, aq.factor(), aq.cols);
  symmetrise(ctx, projected);
  const Dense ascending(scratch, q.cols, 1), vectors(scratch, q.cols, q.cols);
  symmetric_eigen(scratch, q.cols, projected.data(), ascending.data(), vectors.data(), row);
  const Dense weights(scratch, q.cols, keep), found(scratch, 2, keep);
  launch(ctx, "krylov", elements(weights.size()), take_leading, vectors.data(), ascending.data(),
         q.cols, keep, weights.data(), found.data());
  RitzPairs pairs;
  pairs.vectors = combine(scratch, q, weights);
  *images = combine(scratch, aq, weights);
  *rest = copied(scratch, *images);
  launch(ctx, "krylov", elements(keep * kWarp), take_residuals, pairs.vectors.data(), found.data(),
         pairs.vectors.rows, keep, rest->data(), found.data() + keep);
  const std::vector<double> host = host_values(ctx, found.data(), 2 * keep);
  pairs.values.assign(host.begin(), host.begin() + keep);
  pairs.residuals.assign(host.begin() + keep, host.end());
  pairs.exact = q.cols == q.storage.rows;
  return pairs;
}

}  // namespace

Dense normal_matrix(Scratch& scratch, int64_t rows, int64_t cols, uint64_t seed) {
  Dense out(scratch, rows, cols);
  launch(scratch.ctx(), "normal_matrix", elements((out.size() + 1) / 2), fill_normals, out.data(),
         out.size(), seed);
  return out;
}

RitzPairs block_krylov(Scratch& scratch, int64_t n, const KrylovOptions& options,
                       const ApplyFn& apply, const ConvergedFn& test, bool* converged,
                       const char* row) {
  Context* ctx = scratch.ctx();
  const int64_t block = std::min(options.block, n);
  const int64_t capacity = std::min(n, block * (options.blocks + 1));
  Basis q(scratch, n, capacity), aq(scratch, n, capacity);
  Dense next = normal_matrix(scratch, n, block, options.seed);
  RitzPairs pairs;
  for (int cycle = 0; cycle < options.max_cycles; ++cycle) {
    while (q.cols < capacity) {
      const int64_t room = capacity - q.cols;
      if (next.cols > room) next = leading_columns(scratch, next, room);
      next = orthonormal_to(scratch, q, std::move(next));
      q.append(ctx, next);
      next = apply(next);
      aq.append(ctx, next);
    }
    Dense images;
    pairs = ritz(scratch, q, aq, block, row, &images, &next);
    *converged = pairs.exact || test(pairs);
    if (*converged) return pairs;
    q.cols = aq.cols = 0;
    q.append(ctx, pairs.vectors);
    aq.append(ctx, images);
  }
  return pairs;
}

}  // namespace balora::cuda
