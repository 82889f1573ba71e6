// Strided views of an operand's view, for the rows that take them.
#pragma once
#include <vector>

#include "tensor/dtype.h"
#include "tensor/view.h"

namespace balora::test {

inline void move_by(View& v, int64_t elements) {
  v.data = static_cast<char*>(v.data) + elements * dtype_size(static_cast<DType>(v.dtype));
}

// Dimension `dim` from index `first` on, `size` of them, every `step`-th.
inline View narrow(View v, int32_t dim, int64_t first, int64_t size, int64_t step = 1) {
  move_by(v, first * v.stride[dim]);
  v.shape[dim] = size;
  v.stride[dim] *= step;
  return v;
}

// A flat view without its first elements.
inline View from(const View& v, int64_t first) {
  return narrow(v, 0, first, v.shape[0] - first);
}

inline View permuted(const View& v, const std::vector<int32_t>& order) {
  View out = v;
  for (size_t i = 0; i < order.size(); ++i) {
    out.shape[i] = v.shape[order[i]];
    out.stride[i] = v.stride[order[i]];
  }
  return out;
}

// Dimensions of size 1 repeated to `shape`.
inline View expanded(View v, const std::vector<int64_t>& shape) {
  for (size_t i = 0; i < shape.size(); ++i) {
    if (v.shape[i] == 1 && shape[i] != 1) v.stride[i] = 0;
    v.shape[i] = shape[i];
  }
  return v;
}

}  // namespace balora::test
