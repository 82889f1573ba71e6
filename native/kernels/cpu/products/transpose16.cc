#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/levels.h"

namespace balora {

BALORA_INLINE void transpose16_loop(const uint32_t* from, int64_t from_stride, uint32_t* to,
                                    int64_t to_stride) {
  Words rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = *reinterpret_cast<const Words*>(from + i * from_stride);
  transpose_words(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) *reinterpret_cast<Words*>(to + i * to_stride) = rows[i];
}
void transpose16(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride) {
  at_level<&transpose16_loop>(from, from_stride, to, to_stride);
}

void transpose_floats(const float* from, int64_t rows, int64_t cols, float* to) {
  for (int64_t i = 0; i < rows; i += 16) {
    for (int64_t j = 0; j < cols; j += 16) {
      transpose16(reinterpret_cast<const uint32_t*>(from + i * cols + j), cols,
                  reinterpret_cast<uint32_t*>(to + j * rows + i), rows);
    }
  }
}

}  // namespace balora
