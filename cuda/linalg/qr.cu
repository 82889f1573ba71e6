// See qr.cuh. CholeskyQR2 (Yamamoto et al. 2015): 4 M N^2 flops of gemm() twice over, in panels of
// 32 columns with 3 launches each (2 in the triangular solve). Householder: a warp a column, one
// launch a reflector: N launches that read two and write one column each, 24 M N bytes a reflector
// and half of that on average, so memory bounds it: 12 M N^2 bytes, twice with Q. It is for the few
// ill-conditioned, deficient and wide matrices.
#include "linalg/qr.cuh"

#include "runtime/state.cuh"

namespace balora::cuda {
namespace {

constexpr int kPanel = 32;
constexpr int kPitch = kPanel + 1;
constexpr int kThreads = 128;

// ---- Cholesky: the upper triangle of G becomes R, R^T R = G -------------------------------------

// The diagonal block of `width` columns at `from`, in shared memory. *failed: a
// pivot that is not positive.
__global__ void factor_diagonal(double* g, int64_t n, int64_t from, int width, int32_t* failed) {
  BALORA_SHARED(double, tile, kPanel* kPitch);
  const int thread = static_cast<int>(threadIdx.x);
  double* block = g + from * n + from;
  for (int at = thread; at < width * width; at += kThreads) {
    tile[at / width * kPitch + at % width] = block[at / width * n + at % width];
  }
  __syncthreads();
  for (int k = 0; k < width; ++k) {
    const double pivot = tile[k * kPitch + k];
    const double root = pivot > 0 ? sqrt(pivot) : 1;
    __syncthreads();
    if (thread == 0 && !(pivot > 0)) *failed = 1;
    if (thread == k) tile[k * kPitch + k] = root;
    if (thread > k && thread < width) tile[k * kPitch + thread] /= root;
    __syncthreads();
    for (int at = thread; at < width * width; at += kThreads) {
      const int i = at / width, j = at % width;
      if (i > k && j >= i) tile[i * kPitch + j] -= tile[k * kPitch + i] * tile[k * kPitch + j];
    }
    __syncthreads();
  }
  for (int at = thread; at < width * width; at += kThreads) {
    block[at / width * n + at % width] = tile[at / width * kPitch + at % width];
  }
}

// Rows [from, from + width) right of the diagonal block: R_jj^-T times them; a thread a column.
__global__ void solve_panel(double* g, int64_t n, int64_t from, int width) {
  BALORA_SHARED(double, r, kPanel* kPitch);
  for (int at = static_cast<int>(threadIdx.x); at < width * width;
       at += static_cast<int>(blockDim.x)) {
    r[at / width * kPitch + at % width] = g[(from + at / width) * n + from + at % width];
  }
  __syncthreads();
  const int64_t col = from + width + thread_index();
  if (col >= n) return;
  double x[kPanel];
  BALORA_UNROLL
  for (int i = 0; i < kPanel; ++i) {
    double sum = i < width ? g[(from + i) * n + col] : 0;
    BALORA_UNROLL
    for (int k = 0; k < i; ++k) {
      if (i < width) sum -= r[k * kPitch + i] * x[k];
    }
    x[i] = i < width ? sum / r[i * kPitch + i] : 0;
    if (i < width) g[(from + i) * n + col] = x[i];
  }
}

// Clears below the diagonal; *failed also where the diagonal spreads over more than `limit`.
__global__ void finish_triangle(double* r, int64_t n, double limit, int32_t* failed) {
  for (int64_t at = thread_index(); at < n * n; at += thread_count()) {
    const int64_t i = at / n, j = at % n;
    if (i > j) r[at] = 0;
  }
  if (blockIdx.x != 0 || threadIdx.x >= kWarp) return;
  double largest = 0, falling = -r[0];  // falling: of the smallest, negative
  for (int64_t i = threadIdx.x; i < n; i += kWarp) {
    largest = Max()(r[i * n + i], largest);
    falling = Max()(-r[i * n + i], falling);
  }
  largest = warp_reduce(largest, Max());
  falling = warp_reduce(falling, Max());
  const bool fits = falling < 0 && largest <= limit * -falling;
  if (threadIdx.x == 0 && !fits) *failed = 1;
}

void cholesky(Context* ctx, const Dense& g, double limit, int32_t* failed) {
  const int64_t n = g.cols;
  for (int64_t from = 0; from < n; from += kPanel) {
    const auto width = static_cast<int>(std::min<int64_t>(kPanel, n - from));
    const int64_t next = from + width, rest = n - next;
    launch(ctx, "qr", {dim3(1), dim3(kThreads)}, factor_diagonal, g.data(), n, from, width, failed);
    if (rest == 0) break;
    launch(ctx, "qr", elements(rest, kThreads), solve_panel, g.data(), n, from, width);
    const Factor panel{g.data() + from * n + next, n};
    multiply(ctx, {rest, rest, width}, -1, {panel.data, n, true}, panel, 1,
             g.data() + next * n + next, n);
  }
  launch(ctx, "qr", elements(n * n), finish_triangle, g.data(), n, limit, failed);
}

// ---- X R^-1 -------------------------------------------------------------------------------------

constexpr int kSolveRows = 64;

// Columns [from, from + width) of x divided by the diagonal block; a thread a row, the block's rows
// in shared memory.
__global__ void divide_panel(double* x, int64_t rows, int64_t n, const double* r, int64_t from,
                             int width) {
  BALORA_SHARED(double, triangle, kPanel* kPitch);
  BALORA_SHARED(double, tile, kSolveRows* kPitch);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSolveRows;
  const auto count = static_cast<int>(rows - first < kSolveRows ? rows - first : kSolveRows);
  for (int at = thread; at < width * width; at += kSolveRows) {
    triangle[at / width * kPitch + at % width] = r[(from + at / width) * n + from + at % width];
  }
  for (int at = thread; at < count * width; at += kSolveRows) {
    tile[at / width * kPitch + at % width] = x[(first + at / width) * n + from + at % width];
  }
  __syncthreads();
  double* row = tile + thread * kPitch;
  for (int j = 0; j < width && thread < count; ++j) {
    double sum = row[j];
    for (int k = 0; k < j; ++k) sum -= row[k] * triangle[k * kPitch + j];
    row[j] = sum / triangle[j * kPitch + j];
  }
  __syncthreads();
  for (int at = thread; at < count * width; at += kSolveRows) {
    x[(first + at / width) * n + from + at % width] = tile[at / width * kPitch + at % width];
  }
}

// ---- Householder, on the columns as rows of W (N,M) ---------------------------------------------

struct Reflectors {
  double* w;           // (ncols, m)
  double* beta;        // (k): the diagonal of R
  double* reciprocal;  // (k): 2 / |v|^2, 0 where the column is zero already
  int64_t m, ncols;
};

__global__ void load_columns(const double* a, int64_t m, int64_t n, const Scale* scale, double* w) {
  for (int64_t at = thread_index(); at < m * n; at += thread_count()) {
    w[at % n * m + at / n] = a[at] * scale->up;
  }
}

// H_j to the columns behind j. Column j itself stays: with beta it is the reflector v = x - beta
// e_j, so every warp finds |x|^2 and x . a in one pass. A warp a column.
__global__ void reflect(Reflectors h, int64_t j) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t l = j + thread_index() / kWarp;
  if (l >= h.ncols) return;
  const double* x = h.w + j * h.m;
  double* a = h.w + l * h.m;
  double square = 0, dot = 0;
  for (int64_t i = j + lane; i < h.m; i += kWarp) {
    square += x[i] * x[i];
    dot += x[i] * a[i];
  }
  square = warp_reduce(square);
  dot = warp_reduce(dot);
  const double head = x[j], mine = a[j];
  const double beta = head > 0 ? -sqrt(square) : sqrt(square);
  const double reciprocal = square > 0 ? 1 / (square - beta * head) : 0;
  __syncwarp();
  if (l == j) {
    if (lane == 0) h.beta[j] = beta, h.reciprocal[j] = reciprocal;
  } else if (reciprocal != 0) {
    const double factor = (dot - beta * mine) * reciprocal;
    for (int64_t i = j + lane; i < h.m; i += kWarp) a[i] -= factor * (i == j ? head - beta : x[i]);
  }
}

// Q = H_0 ... H_{k-1} of the leading columns of the identity, as rows of qt (K,M): H_j to the rows
// from j on, j falling.
__global__ void apply_reflector(Reflectors h, double* qt, int64_t k, int64_t j) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t l = j + thread_index() / kWarp;
  if (l >= k) return;
  const double* x = h.w + j * h.m;
  double* q = qt + l * h.m;
  const double head = x[j] - h.beta[j];
  double dot = 0;
  for (int64_t i = j + lane; i < h.m; i += kWarp) dot += (i == j ? head : x[i]) * q[i];
  const double factor = warp_reduce(dot) * h.reciprocal[j];
  for (int64_t i = j + lane; i < h.m; i += kWarp) q[i] -= factor * (i == j ? head : x[i]);
}

__global__ void set_unit_rows(double* qt, int64_t k, int64_t m) {
  for (int64_t at = thread_index(); at < k * m; at += thread_count()) {
    qt[at] = at / m == at % m ? 1 : 0;
  }
}

// R (K,N) and Q (M,K) with the signs that make R's diagonal non-negative.
__global__ void store_factors(Reflectors h, const double* qt, int64_t k, const Scale* scale,
                              double* q, double* r) {
  const int64_t of_r = k * h.ncols, of_q = h.m * k;
  for (int64_t at = thread_index(); at < of_r + of_q; at += thread_count()) {
    if (at < of_r) {
      const int64_t i = at / h.ncols, j = at % h.ncols;
      const double sign = h.beta[i] < 0 ? -1 : 1;
      const double value = i == j ? h.beta[i] : i < j ? h.w[j * h.m + i] : 0;
      r[at] = value == 0 ? 0 : sign * value * scale->down;
    } else {
      const int64_t i = (at - of_r) / k, j = (at - of_r) % k;
      q[at - of_r] = (h.beta[j] < 0 ? -1 : 1) * qt[j * h.m + i];
    }
  }
}

// A warp for each of `count` columns, four a block.
Grid warps(int64_t count) {
  return {dim3(static_cast<unsigned>(ceil_div(count, kThreads / kWarp))), dim3(kThreads)};
}

QrFactors householder_qr(Scratch& scratch, const Dense& a) {
  Context* ctx = scratch.ctx();
  const int64_t m = a.rows, n = a.cols, k = std::min(m, n);
  const Buffer<Scale> scale = scale_of(scratch, a.data(), a.size());
  const Dense w(scratch, n, m), qt(scratch, k, m);
  const Buffer<double> beta(scratch, k), reciprocal(scratch, k);
  const Reflectors h{w.data(), beta.data(), reciprocal.data(), m, n};
  launch(ctx, "qr", elements(m * n), load_columns, a.data(), m, n, scale.data(), w.data());
  for (int64_t j = 0; j < k; ++j) launch(ctx, "qr", warps(n - j), reflect, h, j);
  launch(ctx, "qr", elements(k * m), set_unit_rows, qt.data(), k, m);
  for (int64_t j = k - 1; j >= 0; --j) {
    launch(ctx, "qr", warps(k - j), apply_reflector, h, qt.data(), k, j);
  }
  QrFactors out{Dense(scratch, m, k), Dense(scratch, k, n)};
  launch(ctx, "qr", elements(out.q.size() + out.r.size()), store_factors, h, qt.data(), k,
         scale.data(), out.q.data(), out.r.data());
  return out;
}

// Both passes are enqueued before the one read: the second is wasted on a matrix that fails the
// first, which then takes the slow way anyway.
bool cholesky_qr2(Scratch& scratch, const Dense& a, QrFactors& out) {
  constexpr double kConditionLimit = 1e6;
  Context* ctx = scratch.ctx();
  const Buffer<int32_t> failed(scratch, 1);
  clear_flags(ctx, failed.data(), 1);
  out.q = copied(scratch, a);
  const Dense first = product_tn(scratch, out.q, out.q);
  cholesky(ctx, first, kConditionLimit, failed.data());
  divide_by_upper(ctx, out.q.data(), a.rows, first);
  const Dense second = product_tn(scratch, out.q, out.q);
  cholesky(ctx, second, 2, failed.data());
  divide_by_upper(ctx, out.q.data(), a.rows, second);
  out.r = product(scratch, second, first);
  int32_t flag = 0;
  download(ctx, &flag, failed.data(), sizeof flag);
  return flag == 0;
}

}  // namespace

void divide_by_upper(Context* ctx, double* x, int64_t rows, const Dense& r) {
  const int64_t n = r.cols;
  const dim3 blocks(static_cast<unsigned>(ceil_div(rows, kSolveRows)));
  for (int64_t from = 0; from < n; from += kPanel) {
    const auto width = static_cast<int>(std::min<int64_t>(kPanel, n - from));
    launch(ctx, "qr", {blocks, dim3(kSolveRows)}, divide_panel, x, rows, n, r.data(), from, width);
    const int64_t next = from + width;
    multiply(ctx, {rows, n - next, width}, -1, {x + from, n}, {r.data() + from * n + next, n}, 1,
             x + next, n);
  }
}

QrFactors thin_qr(Scratch& scratch, const Dense& a) {
  QrFactors out;
  if (a.rows >= a.cols && cholesky_qr2(scratch, a, out)) return out;
  return householder_qr(scratch, a);
}

}  // namespace balora::cuda
