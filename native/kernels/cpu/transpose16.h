// A 16 x 16 block of 32-bit words, transposed in registers.
#pragma once
#include <cstdint>

namespace balora {

// Row i starts at from + i * from_stride; its transpose at to + i * to_stride.
void transpose16(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride);

}  // namespace balora
