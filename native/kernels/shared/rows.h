// Rows of a matrix in any float type.
#pragma once
#include <cstdint>

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

}  // namespace balora
