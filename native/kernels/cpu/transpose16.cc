#include "kernels/cpu/transpose16.h"

namespace balora {

BALORA_SIMD void transpose16(const uint32_t* from, int64_t from_stride, uint32_t* to,
                             int64_t to_stride) {
  Words rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = *reinterpret_cast<const Words*>(from + i * from_stride);
  transpose_words(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) *reinterpret_cast<Words*>(to + i * to_stride) = rows[i];
}

}  // namespace balora
