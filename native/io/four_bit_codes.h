// Values of codes of 4 bits (encodings.h), of one block.
#pragma once
#include <cstdint>

#include "kernels/shared/blocks.h"

namespace balora::io {

// out = code[...] * scale for elements [first, first + count) of the block.
using CodesDecoder = void (*)(const uint8_t* packed, int64_t first, int64_t count,
                              const float* code, float scale, float* out);

inline void decode_codes(const uint8_t* packed, int64_t first, int64_t count, const float* code,
                         float scale, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = code[blocks::four_bit_code(packed, first + i)] * scale;
  }
}

namespace x86 {
// The same in AVX-512 instructions.
void decode_codes(const uint8_t* packed, int64_t first, int64_t count, const float* code,
                  float scale, float* out);
}  // namespace x86

}  // namespace balora::io
