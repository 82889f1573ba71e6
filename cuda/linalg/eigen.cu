// See eigen.cuh. Up to order 64 one block of threads does everything in shared memory, in one
// launch. Larger matrices: two-sided block Jacobi, two launches a round of N/16 - 1 rounds a sweep:
// the N/32 disjoint pairs of 16-row blocks are diagonalised (a block of threads each), then every
// 32 x 32 tile above the diagonal is rotated from both sides and mirrored, and the vectors' rows
// with it. A round reads and writes N^2 elements of A and of V (32 N^2 bytes) for 96 N^2 flops, so
// memory and the pairs' latency (about 0.1 ms) set the time: on paper 20 ms for N = 256, 0.2 s for
// 1024, 1.5 s for 4096 (8 sweeps, 2 TB/s). A sweep without a rotation ends it on the device: the
// launches of the later ones return at once.
#include "linalg/eigen.cuh"

#include "linalg/jacobi.cuh"

namespace balora::cuda {
namespace {

// For a matrix whose largest magnitude is in [1, 2): what is left beside the diagonal moves an
// eigenvalue by less than its rounding.
__device__ JacobiRule rule() {
  return {0x1p-54, 0x1p-53, -1};
}

__device__ void report(Fault* fault, int32_t row, double scale, bool converged) {
  if (scale != scale) {
    report_fault(fault, kNotFinite, row, 0, 0);
  } else if (!converged) {
    report_fault(fault, kNotConverged, row, 0, 0);
  }
}

struct Small {
  int n, order;
  const double* a;
  double *values, *vectors;
  Fault* fault;
  int32_t row;
};

// Loads the lower triangle, mirrored and scaled; the padding is zero, so that
// nothing mixes with it.
__device__ Scale load_small(const Small& p, double* a) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const int pitch = p.order + 1;
  double largest = 0;
  for (int at = static_cast<int>(threadIdx.x); at < p.order * p.order;
       at += static_cast<int>(blockDim.x)) {
    const int i = at / p.order, j = at % p.order;
    const int low = i > j ? i : j, high = i > j ? j : i;
    const double value = low < p.n ? p.a[low * p.n + high] : 0;
    a[i * pitch + j] = value;
    largest = Max()(fabs(value), largest);
  }
  const Scale scale = scale_for(block_reduce(largest, 0.0, scratch, Max()));
  for (int at = static_cast<int>(threadIdx.x); at < p.order * p.order;
       at += static_cast<int>(blockDim.x)) {
    a[at / p.order * pitch + at % p.order] *= scale.up;
  }
  return scale;
}

__global__ void solve_small(Small p) {
  SharedMemory shared;
  const int pitch = p.order + 1;
  double* a = shared.array<double>(p.order * pitch);
  double* vt = shared.array<double>(p.order * pitch);
  double* diagonal = shared.array<double>(p.order);
  Rotation* rotations = shared.array<Rotation>(p.order / 2);
  const Scale scale = load_small(p, a);
  set_identity(vt, p.order);
  __syncthreads();
  const JacobiOutcome outcome = diagonalise(a, vt, p.order, kJacobiSweeps, rule(), rotations);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < p.n; i += threads) diagonal[i] = a[i * pitch + i];
  __syncthreads();
  for (int i = thread; i < p.n; i += threads) {
    const int64_t rank = rank_of(diagonal, p.n, i, false);
    p.values[rank] = diagonal[i] * scale.down;
    for (int j = 0; p.vectors && j < p.n; ++j) p.vectors[j * p.n + rank] = vt[i * pitch + j];
  }
  if (thread == 0) report(p.fault, p.row, scale.up, outcome.converged);
}

// ---- Larger than a block of threads -------------------------------------------------------------

__global__ void mirror_lower(const double* from, int64_t n, double* a, double* vt, int64_t padded) {
  for (int64_t at = thread_index(); at < padded * padded; at += thread_count()) {
    const int64_t i = at / padded, j = at % padded;
    const int64_t low = i > j ? i : j, high = i > j ? j : i;
    a[at] = low < n ? from[low * n + high] : 0;
    if (vt) vt[at] = i == j ? 1 : 0;
  }
}

__global__ void scale_up(double* a, int64_t count, const Scale* scale) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) a[i] *= scale->up;
}

__global__ void solve_pairs(JacobiRound work, double* a, int64_t padded) {
  BALORA_SHARED(double, tile, kJacobiTile* kJacobiPitch);
  BALORA_SHARED(double, vt, kJacobiTile* kJacobiPitch);
  BALORA_SHARED(Rotation, rotations, kJacobiRows);
  if (work.settled()) return;
  const Pair pair = work.pair(static_cast<int>(blockIdx.x));
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    const int i = at / kJacobiTile, j = at % kJacobiTile;
    tile[i * kJacobiPitch + j] = a[pair_row(pair, i) * padded + pair_row(pair, j)];
  }
  set_identity(vt, kJacobiTile);
  __syncthreads();
  visit_pair(tile, vt, work, rule(), rotations);
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    const int i = at / kJacobiTile, j = at % kJacobiTile;
    a[pair_row(pair, i) * padded + pair_row(pair, j)] = tile[i * kJacobiPitch + j];
  }
}

// The tile of rows of pair p and columns of pair q, rotated by both; its mirror image is written as
// well, so that a stays symmetric to the bit.
__device__ void rotate_tile(const JacobiRound& work, int p, int q, double* a, int64_t padded,
                            double* left, double* right, double* tile) {
  const Pair rows = work.pair(p), cols = work.pair(q);
  load_basis(work, p, left);
  load_basis(work, q, right);
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    const int i = at / kJacobiTile, j = at % kJacobiTile;
    tile[i * kJacobiPitch + j] = a[pair_row(rows, i) * padded + pair_row(cols, j)];
  }
  __syncthreads();
  TilePart half, full;
  multiply_tiles<false>(left, tile, half);
  __syncthreads();
  half.put(tile);
  __syncthreads();
  multiply_tiles<true>(tile, right, full);
  __syncthreads();
  full.put(tile);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    const int i = at / kJacobiTile, j = at % kJacobiTile;
    a[pair_row(rows, i) * padded + pair_row(cols, j)] = tile[i * kJacobiPitch + j];
    a[pair_row(cols, i) * padded + pair_row(rows, j)] = tile[j * kJacobiPitch + i];
  }
}

// Blocks (p, q): tile (p,q) of a where p < q; blocks (p, pairs + tile): rows of pair p of vt.
__global__ void rotate_all(JacobiRound work, double* a, double* vt, int64_t padded) {
  BALORA_SHARED(double, left, kJacobiTile* kJacobiPitch);
  BALORA_SHARED(double, right, kJacobiTile* kJacobiPitch);
  BALORA_SHARED(double, tile, kJacobiTile* kJacobiPitch);
  const int p = static_cast<int>(blockIdx.x), q = static_cast<int>(blockIdx.y);
  const int pairs = work.blocks / 2;
  if (work.settled()) return;
  if (q < pairs) {
    if (p >= q || (!work.rotated[p] && !work.rotated[q])) return;
    rotate_tile(work, p, q, a, padded, left, right, tile);
  } else {
    if (!work.rotated[p]) return;
    rotate_rows(work, p, vt, padded, static_cast<int64_t>(q - pairs) * kJacobiTile, padded, left,
                tile);
  }
}

__global__ void take_diagonal(const double* a, int64_t padded, int64_t n, double* diagonal) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) diagonal[i] = a[i * padded + i];
}

__global__ void rank_values(const double* diagonal, int64_t n, const Scale* scale, double* values,
                            int64_t* ranks, const int32_t* moved, Fault* fault, int32_t row) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    ranks[i] = rank_of(diagonal, n, i, false);
    values[ranks[i]] = diagonal[i] * scale->down;
    if (i == 0) report(fault, row, scale->up, moved[kJacobiSweeps - 1] == 0);
  }
}

__global__ void place_vectors(const double* vt, int64_t padded, int64_t n, const int64_t* ranks,
                              double* vectors) {
  for (int64_t at = thread_index(); at < n * n; at += thread_count()) {
    const int64_t i = at / n, j = at % n;
    vectors[j * n + ranks[i]] = vt[i * padded + j];
  }
}

void solve_large(Scratch& scratch, int64_t n, const double* from, const EigenOutputs& out,
                 int32_t row) {
  Context* ctx = scratch.ctx();
  const int64_t padded = ceil_div(n, kJacobiTile) * kJacobiTile;
  const auto blocks = static_cast<int>(padded / kJacobiRows), pairs = blocks / 2;
  const Dense a(scratch, padded, padded);
  const Dense vt = out.vectors ? Dense(scratch, padded, padded) : Dense();
  const Buffer<double> bases(scratch, pairs * kJacobiTile * kJacobiTile), diagonal(scratch, n);
  const Buffer<int32_t> flags(scratch, kJacobiSweeps + pairs);
  const Buffer<int64_t> ranks(scratch, n);
  launch(ctx, "eigh", elements(a.size()), mirror_lower, from, n, a.data(), vt.data(), padded);
  const Buffer<Scale> scale = scale_of(scratch, a.data(), a.size());
  launch(ctx, "eigh", elements(a.size()), scale_up, a.data(), a.size(), scale.data());
  clear_flags(ctx, flags.data(), kJacobiSweeps);
  const auto tiles = static_cast<unsigned>(pairs + (out.vectors ? padded / kJacobiTile : 0));
  JacobiRound work{.moved = flags.data(),
                   .rotated = flags.data() + kJacobiSweeps,
                   .bases = bases.data(),
                   .blocks = blocks};
  for (work.sweep = 0; work.sweep < kJacobiSweeps; ++work.sweep) {
    for (work.meeting = 0; work.meeting < blocks - 1; ++work.meeting) {
      launch(ctx, "eigh", {dim3(static_cast<unsigned>(pairs)), dim3(kJacobiThreads)}, solve_pairs,
             work, a.data(), padded);
      launch(ctx, "eigh", {dim3(static_cast<unsigned>(pairs), tiles), dim3(kJacobiThreads)},
             rotate_all, work, a.data(), vt.data(), padded);
    }
  }
  launch(ctx, "eigh", elements(n), take_diagonal, a.data(), padded, n, diagonal.data());
  launch(ctx, "eigh", elements(n), rank_values, diagonal.data(), n, scale.data(), out.values,
         ranks.data(), flags.data(), state_of(ctx).fault, row);
  if (out.vectors) {
    launch(ctx, "eigh", elements(n * n), place_vectors, vt.data(), padded, n, ranks.data(),
           out.vectors);
  }
}

}  // namespace

void symmetric_eigen(Scratch& scratch, int64_t n, const double* a, const EigenOutputs& out,
                     const char* row) {
  if (n == 0) return;
  if (n > kJacobiLargest) return solve_large(scratch, n, a, out, fault_row(row));
  Context* ctx = scratch.ctx();
  const auto order = static_cast<int>(ceil_div(n, 4) * 4);
  const int64_t bytes = 2 * shared_bytes<double>(order * (order + 1)) +
                        shared_bytes<double>(order) + shared_bytes<Rotation>(order / 2);
  const unsigned threads = order > kJacobiTile ? 256 : kJacobiThreads;
  const Small small{.n = static_cast<int>(n),
                    .order = order,
                    .a = a,
                    .values = out.values,
                    .vectors = out.vectors,
                    .fault = state_of(ctx).fault,
                    .row = fault_row(row)};
  launch(ctx, "eigh", {dim3(1), dim3(threads), bytes}, solve_small, small);
}

}  // namespace balora::cuda
