// Rows of a matrix in any type, and addresses of elements.
#pragma once
#include <algorithm>
#include <cstdint>

#include "tensor/dtype.h"
#include "tensor/view.h"

namespace balora {

struct SourceRows {
  const void* data;
  int32_t dtype;
  int64_t stride;  // elements from one row to the next
};
struct ResultRows {
  void* data;
  int32_t dtype;
  int64_t stride;
};

// `extent` in as few parts as `most` allows, of nearly the same multiple of 64: the size of a part.
inline int64_t even_share(int64_t extent, int64_t most) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  return parts(parts(extent, std::max<int64_t>(parts(extent, most), 1)), 64) * 64;
}

inline int64_t element_size(int32_t dtype) {
  return dtype_size(static_cast<DType>(dtype));
}

// The address of the element that is `elements` further on.
inline const void* offset_by(const void* data, int64_t elements, int32_t dtype) {
  return static_cast<const char*>(data) + elements * element_size(dtype);
}
inline void* offset_by(void* data, int64_t elements, int32_t dtype) {
  return static_cast<char*>(data) + elements * element_size(dtype);
}

}  // namespace balora
