// The batch of a matrix product of strided, broadcasting operands (...,M,K) and (...,K,N), and how
// a device's gemm can read their matrices.
#pragma once
#include <cstdint>
#include <vector>

#include "tensor/view.h"

namespace balora {

// A dimension of the batch: its extent, and the strides from one matrix to the next.
struct BatchDim {
  int64_t extent, a_stride, b_stride, c_stride;
};

// The batch dimensions, outermost first, with neighbours merged; c is contiguous.
inline std::vector<BatchDim> batch_dims(const View& a, const View& b, const View& c) {
  std::vector<BatchDim> dims;
  const int32_t count = c.ndim - 2;
  const auto stride = [count](const View& v, int32_t i) -> int64_t {
    const int32_t own = i - (count - (v.ndim - 2));
    return own < 0 || v.shape[own] == 1 ? 0 : v.stride[own];
  };
  int64_t inner = 1;
  for (int32_t i = 0; i < count; ++i) inner *= c.shape[i];
  for (int32_t i = 0; i < count; ++i) {
    inner /= c.shape[i];
    if (c.shape[i] == 1) continue;
    const BatchDim next = {c.shape[i], stride(a, i), stride(b, i),
                           inner * c.shape[c.ndim - 2] * c.shape[c.ndim - 1]};
    BatchDim* last = dims.empty() ? nullptr : &dims.back();
    if (last && last->a_stride == next.a_stride * next.extent &&
        last->b_stride == next.b_stride * next.extent) {
      *last = {last->extent * next.extent, next.a_stride, next.b_stride, next.c_stride};
    } else {
      dims.push_back(next);
    }
  }
  return dims;
}

// How the matrices of a view can be read: rows (of the transpose, if so) `stride` elements apart,
// or, where neither side has unit stride, from a dense copy.
struct MatrixLayout {
  int64_t stride = 0;
  bool transposed = false;
  bool copy = false;
};
inline MatrixLayout matrix_layout(const View& view) {
  const int64_t rows = view.shape[view.ndim - 2], cols = view.shape[view.ndim - 1];
  const int64_t row = view.stride[view.ndim - 2], col = view.stride[view.ndim - 1];
  if ((col == 1 || cols == 1) && (rows == 1 || row >= cols)) return {rows == 1 ? cols : row};
  if ((row == 1 || rows == 1) && (cols == 1 || col >= rows)) return {cols == 1 ? rows : col, true};
  return {cols, false, true};
}

}  // namespace balora
