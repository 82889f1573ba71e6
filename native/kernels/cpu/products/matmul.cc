// Batched matrix product of strided, broadcasting operands, brought to gemm()'s terms: batch
// dimensions are merged where their strides allow it, a shared right side turns the batch into
// rows, and an operand without a unit stride is copied first.
#include <algorithm>
#include <vector>

#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/matmul.h"
#include "kernels/shared/rows.h"

namespace balora {
namespace {

template <typename T>
void copy_matrix(const View& view, const T* from, T* to) {
  const int64_t rows = view.shape[view.ndim - 2], cols = view.shape[view.ndim - 1];
  const int64_t row = view.stride[view.ndim - 2], col = view.stride[view.ndim - 1];
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) to[i * cols + j] = from[i * row + j * col];
  }
}

// The data of the matrix at `offset`, copied if need be.
const void* matrix(const View& view, const MatrixLayout& layout, int64_t offset, void* copy) {
  const void* result = nullptr;
  dispatch_float(view.dtype, [&]<typename T>() {
    const T* from = data_of<T>(&view) + offset;
    if (layout.copy) copy_matrix(view, from, static_cast<T*>(copy));
    result = layout.copy ? copy : static_cast<const void*>(from);
  });
  return result;
}

void* copy_buffer(Context* ctx, const View& view, const MatrixLayout& layout) {
  if (!layout.copy) return nullptr;
  const int64_t count = view.shape[view.ndim - 2] * view.shape[view.ndim - 1];
  return workspace<char>(ctx, count * element_size(view.dtype));
}

}  // namespace

int32_t matmul_kernel(Context* ctx, const balora_matmul& o) {
  if (view_numel(*o.c) == 0) return 0;
  const MatrixLayout la = matrix_layout(*o.a), lb = matrix_layout(*o.b);
  GemmShape shape = {o.c->shape[o.c->ndim - 2], o.c->shape[o.c->ndim - 1],
                     o.a->shape[o.a->ndim - 1]};
  std::vector<BatchDim> dims = batch_dims(*o.a, *o.b, *o.c);
  if (!dims.empty() && dims.back().b_stride == 0 && !la.transposed && !la.copy &&
      dims.back().a_stride == shape.m * la.stride) {
    shape.m *= dims.back().extent;
    dims.pop_back();
  }
  GemmInput in_a = {.dtype = o.a->dtype, .ld = la.stride, .transposed = la.transposed};
  GemmInput in_b = {.dtype = o.b->dtype, .ld = lb.stride, .transposed = lb.transposed};
  GemmOutput out = {o.c->data, o.c->dtype, shape.n, shape.m * shape.n};
  if (!dims.empty() && !la.copy && !lb.copy) {
    shape.batch = dims.back().extent;
    in_a.batch_stride = dims.back().a_stride, in_b.batch_stride = dims.back().b_stride;
    dims.pop_back();
  }
  void* copy_a = copy_buffer(ctx, *o.a, la);
  void* copy_b = copy_buffer(ctx, *o.b, lb);
  int64_t count = 1;
  for (const BatchDim& dim : dims) count *= dim.extent;
  for (int64_t i = 0; i < count; ++i) {
    int64_t offset_a = 0, offset_b = 0, rest = i;
    for (size_t d = dims.size(); d-- > 0;) {
      offset_a += rest % dims[d].extent * dims[d].a_stride;
      offset_b += rest % dims[d].extent * dims[d].b_stride;
      rest /= dims[d].extent;
    }
    in_a.data = matrix(*o.a, la, offset_a, copy_a);
    in_b.data = matrix(*o.b, lb, offset_b, copy_b);
    gemm(ctx, shape, in_a, in_b, out, {o.alpha, 0});
    out.data = offset_by(out.data, shape.batch * shape.m * shape.n, out.dtype);
  }
  return 0;
}

}  // namespace balora
