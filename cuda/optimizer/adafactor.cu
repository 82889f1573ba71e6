// Adafactor (Shazeer and Stern, 2018), as transformers runs it; kernels/shared/optimizer.h has the
// formulas. Five passes, none of which waits for the host: squares of the parameter (only
// where the rate is scaled by it); row and column means of the squared gradient into the second
// moment; its factors 1/sqrt; squares of the update; the update itself. The gradient is read four
// times (three for vectors), the parameter twice: 28 bytes of f32 an element, bound by memory. Sums
// are made in f64, each by one block in an order that depends on the shape alone.
#include <cmath>

#include "elementwise/elementwise.cuh"
#include "kernels/shared/optimizer.h"

namespace balora::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 4096;  // elements of a row that one block sums
constexpr int kSlabRows = 256;    // rows that one block sums for its 32 columns
constexpr int64_t kMaxChunks = 1 << 20;

using Extents = AdafactorExtents;

__host__ __device__ inline int64_t chunks_of_row(const Extents& e) {
  return (e.columns + kChunk - 1) / kChunk;
}

// Scalars that stay on the device between the passes.
struct Rates {
  double rate;  // lr, or lr * max(scale_floor, RMS(param))
  double step;  // rate / max(1, RMS(u) / clip)
};

// Operands and buffers of all passes.
template <typename T>
struct Problem {
  const T* grad;
  const double* coefficient;
  T* param;
  T* row;
  T* column;   // null: row is the whole second moment
  T* m;        // may be null
  T* factor;   // a row: sqrt(mean(row) / row); null for vectors
  T* inverse;  // a column: 1/sqrt(column), or 1/sqrt(v)
  Rates* rates;
  Extents e;
  double beta2, eps;
};

template <typename T>
__device__ T scale_of(const Problem<T>& p) {
  return p.coefficient ? static_cast<T>(*p.coefficient) : T(1);
}

template <typename T>
__device__ T update_of(const Problem<T>& p, T scale, int64_t r, int64_t c) {
  const T factor = p.factor ? p.factor[r] : T(1);
  const T inverse = p.inverse[r / p.e.rows * p.e.columns + c];
  return adafactor_direction(p.grad[r * p.e.columns + c], scale, factor, inverse);
}

template <typename T>
__global__ void param_squares(const T* param, int64_t n, double* partial) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double total = 0;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    total += static_cast<double>(param[i]) * param[i];
  }
  total = block_reduce(total, 0.0, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__device__ double sum_of(const double* partial, int64_t chunks, double* scratch) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) total += partial[i];
  return block_reduce(total, 0.0, scratch);
}

// partial null: the rate is not scaled.
__global__ void find_rate(const double* partial, int64_t chunks, int64_t n, double lr,
                          double scale_floor, Rates* rates) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const double total = sum_of(partial, partial ? chunks : 0, scratch);
  if (threadIdx.x != 0) return;
  const double rms = std::sqrt(total / static_cast<double>(n));
  rates->rate = partial ? lr * (rms > scale_floor ? rms : scale_floor) : lr;
}

__global__ void find_step(const double* partial, int64_t chunks, int64_t n, double clip,
                          Rates* rates) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const double total = sum_of(partial, chunks, scratch);
  if (threadIdx.x != 0) return;
  const double over = std::sqrt(total / static_cast<double>(n)) / clip;
  rates->step = rates->rate / (over > 1 ? over : 1.0);
}

// One block a row.
template <typename T>
__global__ void row_moments(Problem<T> p) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const T scale = scale_of(p);
  for (int64_t r = blockIdx.x; r < p.e.all_rows(); r += gridDim.x) {
    const T* g = p.grad + r * p.e.columns;
    double total = 0;
    for (int64_t c = threadIdx.x; c < p.e.columns; c += blockDim.x) {
      total += adafactor_square(g[c], scale, p.eps);
    }
    total = block_reduce(total, 0.0, scratch);
    if (threadIdx.x == 0) {
      p.row[r] = adafactor_blend(p.row[r], total / static_cast<double>(p.e.columns), p.beta2);
    }
  }
}

// Sums of 32 columns over kSlabRows rows: 8 warps take turns at the rows, their sums meet in shared
// memory. sums (matrices, slabs, columns).
template <typename T>
__global__ void column_slabs(Problem<T> p, int64_t slabs, double* sums) {
  BALORA_SHARED(double, partial, kThreads);
  const T scale = scale_of(p);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  for (int64_t slab = blockIdx.y; slab < p.e.matrices * slabs; slab += gridDim.y) {
    const int64_t matrix = slab / slabs, first = slab % slabs * kSlabRows;
    const int64_t end = first + kSlabRows < p.e.rows ? first + kSlabRows : p.e.rows;
    double total = 0;
    for (int64_t r = first + warp; c < p.e.columns && r < end; r += kThreads / kWarp) {
      total += adafactor_square(p.grad[(matrix * p.e.rows + r) * p.e.columns + c], scale, p.eps);
    }
    partial[threadIdx.x] = total;
    __syncthreads();
    if (warp == 0 && c < p.e.columns) {
      for (int w = 1; w < kThreads / kWarp; ++w) total += partial[w * kWarp + lane];
      sums[slab * p.e.columns + c] = total;
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void column_moments(Problem<T> p, int64_t slabs, const double* sums) {
  const int64_t n = p.e.matrices * p.e.columns;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const int64_t matrix = i / p.e.columns, c = i % p.e.columns;
    double total = 0;
    for (int64_t s = 0; s < slabs; ++s) total += sums[(matrix * slabs + s) * p.e.columns + c];
    const T value = adafactor_blend(p.column[i], total / static_cast<double>(p.e.rows), p.beta2);
    p.column[i] = value;
    p.inverse[i] = adafactor_inverse(value);
  }
}

// One block a matrix.
template <typename T>
__global__ void row_factors(Problem<T> p) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  for (int64_t matrix = blockIdx.x; matrix < p.e.matrices; matrix += gridDim.x) {
    const T* row = p.row + matrix * p.e.rows;
    double mean = 0;
    for (int64_t r = threadIdx.x; r < p.e.rows; r += blockDim.x) mean += row[r];
    mean = block_reduce(mean, 0.0, scratch) / static_cast<double>(p.e.rows);
    for (int64_t r = threadIdx.x; r < p.e.rows; r += blockDim.x) {
      p.factor[matrix * p.e.rows + r] = adafactor_factor(mean, row[r]);
    }
  }
}

template <typename T>
__global__ void whole_moments(Problem<T> p) {
  const T scale = scale_of(p);
  for (int64_t i = thread_index(); i < p.e.columns; i += thread_count()) {
    const T value = adafactor_blend(p.row[i], adafactor_square(p.grad[i], scale, p.eps), p.beta2);
    p.row[i] = value;
    p.inverse[i] = adafactor_inverse(value);
  }
}

// One block a chunk of a row.
template <typename T>
__global__ void update_squares(Problem<T> p, double* partial) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const T scale = scale_of(p);
  const int64_t chunks = chunks_of_row(p.e);
  for (int64_t i = blockIdx.x; i < p.e.all_rows() * chunks; i += gridDim.x) {
    const int64_t r = i / chunks, first = i % chunks * kChunk;
    const int64_t end = first + kChunk < p.e.columns ? first + kChunk : p.e.columns;
    double total = 0;
    for (int64_t c = first + threadIdx.x; c < end; c += blockDim.x) {
      const double u = update_of(p, scale, r, c);
      total += u * u;
    }
    total = block_reduce(total, 0.0, scratch);
    if (threadIdx.x == 0) partial[i] = total;
  }
}

template <typename T>
__global__ void apply_chunks(Problem<T> p, T beta1, double weight_decay) {
  const T scale = scale_of(p), step = static_cast<T>(p.rates->step);
  const T decay = static_cast<T>(1 - weight_decay * p.rates->rate);
  const int64_t chunks = chunks_of_row(p.e);
  for (int64_t i = blockIdx.x; i < p.e.all_rows() * chunks; i += gridDim.x) {
    const int64_t r = i / chunks, first = i % chunks * kChunk;
    const int64_t end = first + kChunk < p.e.columns ? first + kChunk : p.e.columns;
    for (int64_t c = first + threadIdx.x; c < end; c += blockDim.x) {
      const int64_t at = r * p.e.columns + c;
      T u = update_of(p, scale, r, c) * step;
      if (p.m) p.m[at] = u = beta1 * p.m[at] + (1 - beta1) * u;
      p.param[at] = p.param[at] * decay - u;
    }
  }
}

Grid blocks(int64_t n) {
  return {dim3(static_cast<unsigned>(std::clamp<int64_t>(n, 1, kMaxChunks))), dim3(kThreads)};
}

template <typename T>
void find_moments(Context* ctx, Problem<T>& p) {
  constexpr const char* kName = "adafactor_step";
  p.inverse = workspace<T>(ctx, p.e.matrices * p.e.columns);
  if (!p.column) {
    return launch(ctx, kName, elements(p.e.columns), whole_moments<T>, p);
  }
  p.factor = workspace<T>(ctx, p.e.all_rows());
  const int64_t slabs = ceil_div(p.e.rows, kSlabRows);
  auto* sums = workspace<double>(ctx, p.e.matrices * slabs * p.e.columns);
  launch(ctx, kName, blocks(p.e.all_rows()), row_moments<T>, p);
  const dim3 grid(static_cast<unsigned>(ceil_div(p.e.columns, kWarp)),
                  static_cast<unsigned>(std::min<int64_t>(p.e.matrices * slabs, 65535)));
  launch(ctx, kName, Grid{grid, dim3(kThreads)}, column_slabs<T>, p, slabs, sums);
  launch(ctx, kName, elements(p.e.matrices * p.e.columns), column_moments<T>, p, slabs, sums);
  launch(ctx, kName, blocks(p.e.matrices), row_factors<T>, p);
}

struct Settings {
  double lr, beta1, clip, weight_decay, scale_floor;
};

template <typename T>
void step(Context* ctx, Problem<T> p, const Settings& k) {
  constexpr const char* kName = "adafactor_step";
  const int64_t n = p.e.all_rows() * p.e.columns, chunks = p.e.all_rows() * chunks_of_row(p.e);
  const int64_t squares = std::min<int64_t>(ceil_div(n, kChunk), 1024);
  auto* partial = workspace<double>(ctx, std::max(chunks, squares));
  p.rates = workspace<Rates>(ctx, 1);
  const Grid one = blocks(1);
  if (k.scale_floor >= 0) {
    launch(ctx, kName, blocks(squares), param_squares<T>, p.param, n, partial);
  }
  launch(ctx, kName, one, find_rate, k.scale_floor >= 0 ? partial : nullptr, squares, n, k.lr,
         k.scale_floor, p.rates);
  find_moments(ctx, p);
  launch(ctx, kName, blocks(chunks), update_squares<T>, p, partial);
  launch(ctx, kName, one, find_step, partial, chunks, n, k.clip, p.rates);
  launch(ctx, kName, blocks(chunks), apply_chunks<T>, p, k.beta1, k.weight_decay);
}

}  // namespace

int32_t adafactor_step_kernel(Context* ctx, const balora_adafactor_step& o) {
  if (view_numel(*o.param) == 0) return 0;
  dispatch_optimizer_state(o.param->dtype, [&]<typename T>() {
    step(ctx,
         Problem<T>{.grad = data_of<const T>(o.grad),
                    .coefficient = data_of<const double>(o.coefficient),
                    .param = data_of<T>(o.param),
                    .row = data_of<T>(o.row),
                    .column = data_of<T>(o.column),
                    .m = data_of<T>(o.m),
                    .e = adafactor_extents(o),
                    .beta2 = o.beta2,
                    .eps = o.eps},
         Settings{.lr = o.lr,
                  .beta1 = o.beta1,
                  .clip = o.clip,
                  .weight_decay = o.weight_decay,
                  .scale_floor = o.scale_floor});
  });
  return 0;
}

}  // namespace balora::cuda
