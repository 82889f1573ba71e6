// See dense_svd.cuh. A long matrix becomes its R factor, then one-sided block Jacobi (jacobi.cuh)
// rotates the rows of the square core C until they are orthogonal: W^T C = diag(s) V^T. Three
// launches a round: the Gram matrices of the pairs of 16 rows in parts of 256 columns, their
// rotations, and the rotation of [C | W^T] by them. The Gram matrices are fresh from the rows each
// time, so small singular values are as accurate as the rows are; a decomposition of C^T C would
// lose those below 1e-8 of the largest. A round reads C twice and W once and writes both, 40 N^2
// bytes for 192 N^2 flops: on paper 20 ms for N = 128 (latency), 0.3 s for 1024, 2 s for 4096. Rows
// of zero length to rounding have no direction: theirs is whatever completes the basis.
#include "linalg/dense_svd.cuh"

#include "linalg/jacobi.cuh"
#include "linalg/qr.cuh"

namespace balora::cuda {
namespace {

constexpr int64_t kPartCols = 256;
constexpr double kNoise = 0x1p-54;  // of a row's length beside a largest magnitude of 1 to 2

struct Core {
  double* z;  // (padded, stride): [C | W^T]
  int64_t padded, n, stride;
};

__global__ void load_core(const double* a, const Scale* scale, Core core) {
  for (int64_t at = thread_index(); at < core.padded * core.stride; at += thread_count()) {
    const int64_t i = at / core.stride, j = at % core.stride;
    if (j >= core.n) {
      core.z[at] = j - core.n == i ? 1 : 0;
    } else {
      core.z[at] = i < core.n ? a[i * core.n + j] * scale->up : 0;
    }
  }
}

// Block (pair, part): the Gram matrix of the pair's 32 rows over the part's columns.
__global__ void gram_parts(JacobiRound work, Core core, double* parts) {
  BALORA_SHARED(double, tile, kJacobiTile* kJacobiPitch);
  if (work.settled()) return;
  const Pair pair = work.pair(static_cast<int>(blockIdx.x));
  const int64_t first = blockIdx.y * kPartCols;
  const int64_t last = first + kPartCols < core.n ? first + kPartCols : core.n;
  TilePart sum;
  for (int64_t col = first; col < last; col += kJacobiTile) {
    for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
         at += kJacobiThreads) {
      const int i = at / kJacobiTile, j = at % kJacobiTile;
      tile[i * kJacobiPitch + j] =
          col + j < last ? core.z[pair_row(pair, i) * core.stride + col + j] : 0;
    }
    __syncthreads();
    multiply_tiles<true>(tile, tile, sum);
    __syncthreads();
  }
  sum.put(tile);
  __syncthreads();
  double* out = parts + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * kJacobiTile *
                            kJacobiTile;
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    out[at] = tile[at / kJacobiTile * kJacobiPitch + at % kJacobiTile];
  }
}

__global__ void solve_pairs(JacobiRound work, JacobiRule rule, const double* parts, int count) {
  BALORA_SHARED(double, tile, kJacobiTile* kJacobiPitch);
  BALORA_SHARED(double, vt, kJacobiTile* kJacobiPitch);
  BALORA_SHARED(Rotation, rotations, kJacobiRows);
  if (work.settled()) return;
  constexpr int kSize = kJacobiTile * kJacobiTile;
  const double* mine = parts + static_cast<int64_t>(blockIdx.x) * count * kSize;
  for (int at = static_cast<int>(threadIdx.x); at < kSize; at += kJacobiThreads) {
    double sum = 0;
    for (int part = 0; part < count; ++part) sum += mine[part * kSize + at];
    tile[at / kJacobiTile * kJacobiPitch + at % kJacobiTile] = sum;
  }
  set_identity(vt, kJacobiTile);
  __syncthreads();
  visit_pair(tile, vt, work, rule, rotations);
}

__global__ void rotate_core(JacobiRound work, Core core) {
  BALORA_SHARED(double, basis, kJacobiTile* kJacobiPitch);
  BALORA_SHARED(double, tile, kJacobiTile* kJacobiPitch);
  const auto pair = static_cast<int>(blockIdx.x);
  if (work.settled() || !work.rotated[pair]) return;
  rotate_rows(work, pair, core.z, core.stride, static_cast<int64_t>(blockIdx.y) * kJacobiTile,
              core.stride, basis, tile);
}

__global__ void row_lengths(Core core, double* lengths) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = thread_index() / kWarp;
  if (i >= core.n) return;
  double square = 0;
  for (int64_t j = lane; j < core.n; j += kWarp) {
    const double value = core.z[i * core.stride + j];
    square += value * value;
  }
  square = warp_reduce(square);
  if (lane == 0) lengths[i] = sqrt(square);
}

__global__ void rank_lengths(const double* lengths, int64_t n, const Scale* scale,
                             const int32_t* moved, double* s, int64_t* ranks, Fault* fault,
                             int32_t row) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    ranks[i] = rank_of(lengths, n, i, true);
    s[ranks[i]] = lengths[i] * scale->down;
    if (i != 0) continue;
    if (scale->up != scale->up) {
      report_fault(fault, kNotFinite, row, 0, 0);
    } else if (moved[kJacobiSweeps - 1] != 0) {
      report_fault(fault, kNotConverged, row, 0, 0);
    }
  }
}

// Columns of v (N,N) and of w (N,N) in order; a row without a direction leaves a zero column of v.
__global__ void place_vectors(Core core, const double* lengths, const int64_t* ranks, double* v,
                              double* w) {
  for (int64_t at = thread_index(); at < core.n * core.n; at += thread_count()) {
    const int64_t i = at / core.n, j = at % core.n;
    const double* row = core.z + i * core.stride;
    v[j * core.n + ranks[i]] = lengths[i] <= kNoise ? 0 : row[j] / lengths[i];
    w[j * core.n + ranks[i]] = row[core.n + j];
  }
}

struct CoreFactors {
  Dense w, s, vt;  // C = w diag(s) vt
};

void orthogonalise_rows(Scratch& scratch, const Core& core, int32_t* flags) {
  Context* ctx = scratch.ctx();
  const auto blocks = static_cast<int>(core.padded / kJacobiRows), pairs = blocks / 2;
  const auto count = static_cast<int>(ceil_div(core.n, kPartCols));
  const Buffer<double> bases(scratch, pairs * kJacobiTile * kJacobiTile),
      parts(scratch, static_cast<int64_t>(pairs) * count * kJacobiTile * kJacobiTile);
  // Two rows count as orthogonal at the rounding of their product.
  const JacobiRule rule{0, 0x1p-52 * (4 + std::sqrt(static_cast<double>(core.n)) / 2),
                        kNoise * kNoise};
  const auto across = static_cast<unsigned>(ceil_div(core.stride, kJacobiTile));
  const auto down = static_cast<unsigned>(pairs);
  clear_flags(ctx, flags, kJacobiSweeps);
  JacobiRound work{
      .moved = flags, .rotated = flags + kJacobiSweeps, .bases = bases.data(), .blocks = blocks};
  for (work.sweep = 0; work.sweep < kJacobiSweeps; ++work.sweep) {
    for (work.meeting = 0; work.meeting < blocks - 1; ++work.meeting) {
      launch(ctx, "svd", {dim3(down, static_cast<unsigned>(count)), dim3(kJacobiThreads)},
             gram_parts, work, core, parts.data());
      launch(ctx, "svd", {dim3(down), dim3(kJacobiThreads)}, solve_pairs, work, rule, parts.data(),
             count);
      launch(ctx, "svd", {dim3(down, across), dim3(kJacobiThreads)}, rotate_core, work, core);
    }
  }
}

CoreFactors square_svd(Scratch& scratch, const Dense& c, bool vectors, const char* row) {
  Context* ctx = scratch.ctx();
  const int64_t n = c.cols, padded = ceil_div(n, kJacobiTile) * kJacobiTile;
  const Dense z(scratch, padded, vectors ? 2 * n : n);
  const Core core{z.data(), padded, n, z.cols};
  const Buffer<Scale> scale = scale_of(scratch, c.data(), c.size());
  const Buffer<int32_t> flags(scratch, kJacobiSweeps + padded / kJacobiTile);
  launch(ctx, "svd", elements(z.size()), load_core, c.data(), scale.data(), core);
  orthogonalise_rows(scratch, core, flags.data());
  const Buffer<double> lengths(scratch, n);
  const Buffer<int64_t> ranks(scratch, n);
  CoreFactors out{Dense(), Dense(scratch, n, 1), Dense()};
  launch(ctx, "svd", elements(n * kWarp), row_lengths, core, lengths.data());
  launch(ctx, "svd", elements(n), rank_lengths, lengths.data(), n, scale.data(), flags.data(),
         out.s.data(), ranks.data(), state_of(ctx).fault, fault_row(row));
  if (!vectors) return out;
  const Dense v(scratch, n, n);
  out.w = Dense(scratch, n, n);
  launch(ctx, "svd", elements(n * n), place_vectors, core, lengths.data(), ranks.data(), v.data(),
         out.w.data());
  out.vt = transposed(scratch, thin_qr(scratch, v).q);
  return out;
}

}  // namespace

SvdFactors thin_svd(Scratch& scratch, const Dense& a, bool vectors, const char* row) {
  if (a.rows < a.cols) {
    SvdFactors flipped = thin_svd(scratch, transposed(scratch, a), vectors, row);
    if (!vectors) return flipped;
    return {transposed(scratch, flipped.vt), std::move(flipped.s), transposed(scratch, flipped.u)};
  }
  if (a.rows == a.cols) {
    CoreFactors core = square_svd(scratch, a, vectors, row);
    return {std::move(core.w), std::move(core.s), std::move(core.vt)};
  }
  const QrFactors qr = thin_qr(scratch, a);
  CoreFactors core = square_svd(scratch, qr.r, vectors, row);
  return {vectors ? product(scratch, qr.q, core.w) : Dense(), std::move(core.s),
          std::move(core.vt)};
}

}  // namespace balora::cuda
