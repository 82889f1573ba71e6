// Gradients of trained weights and biases, in the accumulator's type: dW = dY^T x by cuBLAS (2 N O
// I flops), the bias as sums of columns, which read dY once.
#include "linear/linear.cuh"

namespace balora::cuda {
namespace {

constexpr int kSumColumns = 32, kSumRows = 8;

// A block sums 32 columns; warp w adds rows w, w + 8, ..., and the eight sums are added in order.
template <typename T>
__global__ void sum_rows(const T* dy, int64_t rows, int64_t cols, Acc<T>* out) {
  BALORA_SHARED(Acc<T>, partial, kSumRows * kSumColumns);
  const int lane = threadIdx.x % kSumColumns, part = threadIdx.x / kSumColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + lane;
  Acc<T> sum = 0;
  for (int64_t i = part; i < rows && column < cols; i += kSumRows) {
    sum += load(dy[i * cols + column]);
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (part != 0 || column >= cols) return;
  for (int p = 1; p < kSumRows; ++p) sum += partial[p * kSumColumns + lane];
  out[column] = sum;
}

}  // namespace

int32_t linear_weight_backward_kernel(Context* ctx, const balora_linear_weight_backward& o) {
  const int64_t rows = o.dy->shape[0], out = o.dy->shape[1];
  if (o.dweight) {
    gemm(ctx, {out, o.x->shape[1], rows}, 1, operand(*o.dy, true), operand(*o.x), 0,
         result(*o.dweight));
  }
  if (o.dbias && out > 0) {
    Grid grid{dim3(static_cast<unsigned>(ceil_div(out, kSumColumns))), dim3(256)};
    dispatch_float(o.dy->dtype, [&]<typename T>() {
      launch(ctx, "linear_weight_backward", grid, sum_rows<T>, data_of<T>(o.dy), rows, out,
             data_of<Acc<T>>(o.dbias));
    });
  }
  return 0;
}

}  // namespace balora::cuda
