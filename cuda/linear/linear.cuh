// The operands of the linears' rows, and the views of them that gemm() takes.
#pragma once
#include "runtime/blas.cuh"

namespace balora::cuda {

struct LinearGroup {
  const LinearOperands* linears;
  int32_t count;
};

struct LinearInputs {
  const View *x = nullptr, *x_adapter = nullptr, *dx = nullptr, *dx_adapter = nullptr;

  const View* adapted() const { return x_adapter ? x_adapter : x; }
  const View* adapted_gradient() const { return x_adapter ? dx_adapter : dx; }
};

inline void fill_zero(Context* ctx, const View& view) {
  const auto bytes = static_cast<size_t>(view_numel(view) * element_size(view.dtype));
  if (bytes) check_stream(ctx, cudaMemsetAsync(view.data, 0, bytes, stream_of(ctx)), "linear");
}

inline GemmOperand operand(const View& view, bool transposed = false) {
  return {view.data, view.dtype, view.shape[1], transposed};
}
inline GemmResult result(const View& view) {
  return {view.data, view.dtype, view.shape[1]};
}

// The rows in f32, f64 and f16. by_rows: no row of y depends on the others (row_product.cuh).
void linear_forward_wide(Context* ctx, const LinearInputs& in, const LinearGroup& group,
                         bool by_rows);
void linear_backward_wide(Context* ctx, const LinearInputs& in, const LinearGroup& group);

}  // namespace balora::cuda
