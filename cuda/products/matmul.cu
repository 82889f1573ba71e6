// Batched matrix product of strided, broadcasting operands, brought to gemm()'s terms: batch
// dimensions are merged where their strides allow it, a shared right side turns the batch into
// rows, the longest dimension that is left becomes cuBLAS's batch (stride 0 repeats a matrix), and
// an operand without a unit stride is packed first, each of its matrices once.
#include <vector>

#include "kernels/shared/matmul.h"
#include "runtime/blas.cuh"

namespace balora::cuda {
namespace {

// One thread an element of y, in order.
template <typename T>
__global__ void pack_elements(const T* x, Strided layout, T* y, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) y[i] = x[offset_of(layout, i)];
}

// A dense copy; dimensions that repeat one matrix still do.
View packed(Context* ctx, const View& view) {
  View once = view, dense = view;
  int64_t step = 1;
  for (int32_t i = view.ndim - 1; i >= 0; --i) {
    if (i < view.ndim - 2 && view.stride[i] == 0) once.shape[i] = 1;
    dense.stride[i] = once.shape[i] == 1 && view.shape[i] != 1 ? 0 : step;
    step *= once.shape[i];
  }
  dispatch_float(view.dtype, [&]<typename T>() {
    T* copy = workspace<T>(ctx, step);
    dense.data = copy;
    launch(ctx, "matmul", elements(step), pack_elements<T>, data_of<T>(&view), strided(once), copy,
           step);
  });
  return dense;
}

// Takes the longest dimension out of `dims`.
BatchDim take_longest(std::vector<BatchDim>& dims) {
  const auto longest =
      std::max_element(dims.begin(), dims.end(),
                       [](const BatchDim& x, const BatchDim& y) { return x.extent < y.extent; });
  const BatchDim dim = *longest;
  dims.erase(longest);
  return dim;
}

}  // namespace

int32_t matmul_kernel(Context* ctx, const balora_matmul& o) {
  if (view_numel(*o.c) == 0) return 0;
  GemmShape shape = {o.c->shape[o.c->ndim - 2], o.c->shape[o.c->ndim - 1],
                     o.a->shape[o.a->ndim - 1]};
  const bool empty = shape.k == 0;
  const View left = !empty && matrix_layout(*o.a).copy ? packed(ctx, *o.a) : *o.a;
  const View right = !empty && matrix_layout(*o.b).copy ? packed(ctx, *o.b) : *o.b;
  const MatrixLayout la = matrix_layout(left), lb = matrix_layout(right);
  std::vector<BatchDim> dims = batch_dims(left, right, *o.c);
  if (!dims.empty() && dims.back().b_stride == 0 && !la.transposed &&
      dims.back().a_stride == shape.m * la.stride) {
    shape.m *= dims.back().extent;
    dims.pop_back();
  }
  BatchDim batch{.extent = 1};
  if (!dims.empty()) batch = take_longest(dims);
  shape.batch = batch.extent;
  int64_t count = 1;
  for (const BatchDim& dim : dims) count *= dim.extent;
  for (int64_t i = 0; i < count; ++i) {
    int64_t at_a = 0, at_b = 0, at_c = 0, rest = i;
    for (size_t d = dims.size(); d-- > 0; rest /= dims[d].extent) {
      const int64_t index = rest % dims[d].extent;
      at_a += index * dims[d].a_stride;
      at_b += index * dims[d].b_stride;
      at_c += index * dims[d].c_stride;
    }
    gemm(ctx, shape, o.alpha,
         {offset_by(left.data, at_a, o.a->dtype), o.a->dtype, la.stride, la.transposed,
          batch.a_stride},
         {offset_by(right.data, at_b, o.b->dtype), o.b->dtype, lb.stride, lb.transposed,
          batch.b_stride},
         0, {offset_by(o.c->data, at_c, o.c->dtype), o.c->dtype, shape.n, batch.c_stride});
  }
  return 0;
}

}  // namespace balora::cuda
