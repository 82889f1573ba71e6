// Rows of a matrix in any type, and addresses of elements.
#pragma once
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
