// Gradients of trained weights and biases, in the accumulator's type: dW = dY^T x by cuBLAS (2 N O
// I flops), the bias as sums of columns, which read dY once.
#include "device/rows.cuh"
#include "linear/linear.cuh"

namespace balora::cuda {

int32_t linear_weight_backward_kernel(Context* ctx, const balora_linear_weight_backward& o) {
  const int64_t rows = o.dy->shape[0], out = o.dy->shape[1];
  if (o.dweight) {
    gemm(ctx, {out, o.x->shape[1], rows}, 1, operand(*o.dy, true), operand(*o.x), 0,
         result(*o.dweight));
  }
  if (o.dbias) {
    dispatch_float(o.dy->dtype, [&]<typename T>() {
      sum_columns(ctx, "linear_weight_backward", data_of<T>(o.dy), data_of<Acc<T>>(o.dbias), rows,
                  out);
    });
  }
  return 0;
}

}  // namespace balora::cuda
