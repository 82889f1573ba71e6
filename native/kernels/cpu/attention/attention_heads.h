// Rows of the heads of an operand of attention.
#pragma once
#include <algorithm>

#include "kernels/cpu/attention/attention_tiles.h"

namespace balora::attention {

// (row, head) starts at data + row * stride + head * size. Undefined without a view.
template <typename T>
struct Heads {
  T* data = nullptr;
  int64_t stride = 0, size = 0;
  explicit Heads(const View* view) {
    if (!view) return;
    data = data_of<T>(view), stride = view->stride[0], size = view->shape[2];
  }
  T* at(int64_t row, int64_t head) const { return data + row * stride + head * size; }
  Source<T> source(int64_t row, int64_t head, int64_t rows) const {
    return {at(row, head), stride, rows, size};
  }
};

template <typename T>
void clear_rows(const Heads<T>& heads, int64_t count, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    std::fill(heads.at(row, 0), heads.at(row, count), T{});
  }
}

}  // namespace balora::attention
