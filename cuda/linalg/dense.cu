// See dense.cuh. One thread an element throughout: every one of these passes is a small part of the
// decomposition that it serves, whose products run in gemm().
#include "linalg/dense.cuh"

#include "runtime/state.cuh"

namespace balora::cuda {
namespace {

template <typename T>
__global__ void widen_elements(const T* from, double* to, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    to[i] = static_cast<double>(load(from[i]));
  }
}

template <typename T>
__global__ void narrow_elements(const double* from, T* to, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    to[i] = store<T>(static_cast<Acc<T>>(from[i]));
  }
}

__global__ void zero_elements(double* to, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) to[i] = 0;
}

constexpr int kTile = 32;

// 32 x 32 through shared memory, so that both sides are read and written along rows.
__global__ void transpose_tiles(const double* from, int64_t rows, int64_t cols, double* to) {
  BALORA_SHARED(double, tile, kTile*(kTile + 1));
  const int64_t tiles_across = (cols + kTile - 1) / kTile;
  const int64_t row = blockIdx.x / tiles_across * kTile, col = blockIdx.x % tiles_across * kTile;
  for (int i = threadIdx.y; i < kTile; i += blockDim.y) {
    const int64_t r = row + i, c = col + threadIdx.x;
    if (r < rows && c < cols) tile[i * (kTile + 1) + threadIdx.x] = from[r * cols + c];
  }
  __syncthreads();
  for (int i = threadIdx.y; i < kTile; i += blockDim.y) {
    const int64_t r = row + threadIdx.x, c = col + i;
    if (r < rows && c < cols) to[c * rows + r] = tile[threadIdx.x * (kTile + 1) + i];
  }
}

__global__ void average_triangles(double* a, int64_t n) {
  for (int64_t at = thread_index(); at < n * n; at += thread_count()) {
    const int64_t i = at / n, j = at % n;
    if (i <= j) continue;
    const double mean = (a[at] + a[j * n + i]) / 2;
    a[at] = mean;
    a[j * n + i] = mean;
  }
}

constexpr int kScaleThreads = 256;
constexpr int kScaleBlocks = 256;

__global__ void largest_part(const double* values, int64_t n, double* parts) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double largest = 0;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    largest = Max()(fabs(values[i]), largest);
  }
  largest = block_reduce(largest, 0.0, scratch, Max());
  if (threadIdx.x == 0) parts[blockIdx.x] = largest;
}

__global__ void scale_of_parts(const double* parts, int count, Scale* scale) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    largest = Max()(parts[i], largest);
  }
  largest = block_reduce(largest, 0.0, scratch, Max());
  if (threadIdx.x == 0) *scale = scale_for(largest);
}

}  // namespace

Dense widened(Scratch& scratch, const void* data, int32_t dtype, int64_t rows, int64_t cols) {
  Dense out(scratch, rows, cols);
  dispatch_float(dtype, [&]<typename T>() {
    launch(scratch.ctx(), "widen", elements(out.size()), widen_elements<T>,
           static_cast<const T*>(data), out.data(), out.size());
  });
  return out;
}

Dense widened(Scratch& scratch, const View& view) {
  return widened(scratch, view.data, view.dtype, view.shape[0],
                 view.ndim > 1 ? view.shape[1] : int64_t{1});
}

void store_values(Context* ctx, const double* values, const View& view) {
  const int64_t n = view_numel(view);
  dispatch_float(view.dtype, [&]<typename T>() {
    launch(ctx, "narrow", elements(n), narrow_elements<T>, values, data_of<T>(&view), n);
  });
}

Dense zeros(Scratch& scratch, int64_t rows, int64_t cols) {
  Dense out(scratch, rows, cols);
  launch(scratch.ctx(), "zero", elements(out.size()), zero_elements, out.data(), out.size());
  return out;
}

Dense copied(Scratch& scratch, const Dense& a) {
  return widened(scratch, a.data(), BALORA_F64, a.rows, a.cols);
}

Dense transposed(Scratch& scratch, const Dense& a) {
  Dense out(scratch, a.cols, a.rows);
  const int64_t tiles = ceil_div(a.rows, kTile) * ceil_div(a.cols, kTile);
  launch(scratch.ctx(), "transpose", {dim3(static_cast<unsigned>(tiles)), dim3(kTile, 4)},
         transpose_tiles, a.data(), a.rows, a.cols, out.data());
  return out;
}

void symmetrise(Context* ctx, const Dense& a) {
  launch(ctx, "symmetrise", elements(a.size()), average_triangles, a.data(), a.rows);
}

void multiply(Context* ctx, const GemmShape& shape, double alpha, const Factor& a, const Factor& b,
              double beta, double* c, int64_t ldc) {
  gemm(ctx, shape, alpha, {a.data, BALORA_F64, a.stride, a.transposed},
       {b.data, BALORA_F64, b.stride, b.transposed}, beta, {c, BALORA_F64, ldc});
}

Dense product(Scratch& scratch, const Dense& a, const Dense& b) {
  Dense c(scratch, a.rows, b.cols);
  multiply(scratch.ctx(), {c.rows, c.cols, a.cols}, 1, {a.data(), a.cols}, {b.data(), b.cols}, 0,
           c.data(), c.cols);
  return c;
}

Dense product_tn(Scratch& scratch, const Dense& a, const Dense& b) {
  Dense c(scratch, a.cols, b.cols);
  multiply(scratch.ctx(), {c.rows, c.cols, a.rows}, 1, {a.data(), a.cols, true}, {b.data(), b.cols},
           0, c.data(), c.cols);
  return c;
}

Dense product_nt(Scratch& scratch, const Dense& a, const Dense& b) {
  Dense c(scratch, a.rows, b.rows);
  multiply(scratch.ctx(), {c.rows, c.cols, a.cols}, 1, {a.data(), a.cols}, {b.data(), b.cols, true},
           0, c.data(), c.cols);
  return c;
}

Buffer<Scale> scale_of(Scratch& scratch, const double* values, int64_t count) {
  Buffer<Scale> scale(scratch, 1);
  const auto blocks =
      static_cast<int>(std::clamp<int64_t>(ceil_div(count, 8 * kScaleThreads), 1, kScaleBlocks));
  const Buffer<double> parts(scratch, blocks);
  launch(scratch.ctx(), "largest", {dim3(static_cast<unsigned>(blocks)), dim3(kScaleThreads)},
         largest_part, values, count, parts.data());
  launch(scratch.ctx(), "largest", {dim3(1), dim3(kWarp)}, scale_of_parts, parts.data(), blocks,
         scale.data());
  return scale;
}

std::vector<double> host_values(Context* ctx, const double* values, int64_t count) {
  std::vector<double> out(static_cast<size_t>(count));
  download(ctx, out.data(), values, static_cast<uint64_t>(count) * sizeof(double));
  return out;
}

}  // namespace balora::cuda
