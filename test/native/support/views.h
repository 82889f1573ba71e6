// Strided views for kernel tests, and the plain loop over every index of one.
#pragma once
#include <vector>

#include "support/kernel_test.h"

namespace balora::test {

inline View permuted(const View& v, const std::vector<int>& order) {
  View out = v;
  for (size_t d = 0; d < order.size(); ++d) {
    out.shape[d] = v.shape[order[d]];
    out.stride[d] = v.stride[order[d]];
  }
  return out;
}

// Broadcast to `shape`, right aligned.
inline View expanded(const View& v, const std::vector<int64_t>& shape) {
  View out = v;
  out.ndim = static_cast<int32_t>(shape.size());
  for (int32_t d = 0; d < out.ndim; ++d) {
    const int32_t from = d - (out.ndim - v.ndim);
    out.shape[d] = shape[static_cast<size_t>(d)];
    out.stride[d] = from < 0 || v.shape[from] == 1 ? 0 : v.stride[from];
  }
  return out;
}

// Every element in row-major order of the view, as double.
template <typename T>
std::vector<double> read(const View& v) {
  std::vector<double> out;
  const int64_t n = view_numel(v);
  for (int64_t i = 0; i < n; ++i) {
    int64_t rest = i, at = 0;
    for (int32_t d = v.ndim - 1; d >= 0; --d) {
      at += rest % v.shape[d] * v.stride[d];
      rest /= v.shape[d];
    }
    out.push_back(to_double(static_cast<const T*>(v.data)[at]));
  }
  return out;
}

}  // namespace balora::test
