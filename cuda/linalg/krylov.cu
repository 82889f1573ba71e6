// See krylov.cuh. With n rows, b columns of a block and c <= (blocks + 1) b of the basis, a cycle
// is blocks * (apply + 3 * (4 n c b + 8 n b^2)) flops in gemm() and one eigh of order c, which is
// what takes the time: 25 rounds a sweep for c = 414.
#include "linalg/krylov.cuh"

#include "kernels/shared/philox.h"
#include "linalg/leading_pairs.cuh"
#include "linalg/qr.cuh"

namespace balora::cuda {
namespace {

__global__ void fill_normals(double* to, int64_t count, uint64_t seed) {
  for (int64_t pair = thread_index(); 2 * pair < count; pair += thread_count()) {
    const NormalPair z = philox_normals(seed, static_cast<uint64_t>(pair));
    to[2 * pair] = z.first;
    if (2 * pair + 1 < count) to[2 * pair + 1] = z.second;
  }
}

// rest = images - vectors diag(values)
__global__ void take_residuals(const double* images, const double* vectors, const double* values,
                               int64_t n, int64_t keep, double* rest) {
  for (int64_t at = thread_index(); at < n * keep; at += thread_count()) {
    rest[at] = images[at] - values[at % keep] * vectors[at];
  }
}

// Block j: the length of column j of r (n,cols).
__global__ void column_lengths(const double* r, int64_t n, int64_t cols, double* lengths) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const double value = r[i * cols + blockIdx.x];
    sum += value * value;
  }
  sum = block_reduce(sum, 0.0, scratch);
  if (threadIdx.x == 0) lengths[blockIdx.x] = sqrt(sum);
}

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
    if (q.cols) project_out(scratch, q, block);
    block = std::move(thin_qr(scratch, block).q);
  }
  return block;
}

// The pairs as the host reads them.
RitzPairs pairs_of(Scratch& scratch, const Basis& q, Ritz& found) {
  RitzPairs pairs;
  const Dense lengths = residual_lengths(scratch, found);
  pairs.values = host_values(scratch.ctx(), found.values.data(), found.values.rows);
  pairs.residuals = host_values(scratch.ctx(), lengths.data(), lengths.rows);
  pairs.vectors = std::move(found.vectors);
  pairs.exact = q.cols == q.storage.rows;
  return pairs;
}

}  // namespace

void Basis::append(Context* ctx, const Dense& block) {
  convert_matrix(ctx, block.rows, block.cols, {block.data(), BALORA_F64, block.cols},
                 {storage.data() + cols, BALORA_F64, storage.cols});
  cols += block.cols;
}

Dense leading_columns(Scratch& scratch, const Dense& a, int64_t count) {
  Dense out(scratch, a.rows, count);
  convert_matrix(scratch.ctx(), a.rows, count, {a.data(), BALORA_F64, a.cols},
                 {out.data(), BALORA_F64, count});
  return out;
}

void project_out(Scratch& scratch, const Basis& q, const Dense& block) {
  const Dense inside = against(scratch, q, {block.data(), block.cols}, block.cols);
  multiply(scratch.ctx(), {block.rows, block.cols, q.cols}, -1, q.factor(),
           {inside.data(), inside.cols}, 1, block.data(), block.cols);
}

Ritz ritz(Scratch& scratch, const Basis& q, const Basis& aq, int64_t keep, const char* row) {
  const Dense projected = against(scratch, q, aq.factor(), aq.cols);
  symmetrise(scratch.ctx(), projected);
  Eigenpairs inner = dense_pairs(scratch, projected, std::min(keep, q.cols), row);
  Ritz found;
  found.values = std::move(inner.values);
  found.vectors = combine(scratch, q, inner.vectors);
  found.images = combine(scratch, aq, inner.vectors);
  found.rest = Dense(scratch, found.images.rows, found.images.cols);
  launch(scratch.ctx(), row, elements(found.rest.size()), take_residuals, found.images.data(),
         found.vectors.data(), found.values.data(), found.rest.rows, found.rest.cols,
         found.rest.data());
  return found;
}

Dense residual_lengths(Scratch& scratch, const Ritz& found) {
  Dense lengths(scratch, found.rest.cols, 1);
  launch(scratch.ctx(), "krylov", {dim3(static_cast<unsigned>(lengths.rows)), dim3(256)},
         column_lengths, found.rest.data(), found.rest.rows, found.rest.cols, lengths.data());
  return lengths;
}

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
    Ritz found = ritz(scratch, q, aq, block, row);
    pairs = pairs_of(scratch, q, found);
    *converged = pairs.exact || test(pairs);
    if (*converged) return pairs;
    q.cols = aq.cols = 0;
    q.append(ctx, pairs.vectors);
    aq.append(ctx, found.images);
    next = std::move(found.rest);
  }
  return pairs;
}

}  // namespace balora::cuda
