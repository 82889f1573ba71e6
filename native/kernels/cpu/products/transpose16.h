// A 16 x 16 block of 32-bit words, transposed in registers.
#pragma once
#include "kernels/cpu/runtime/wide.h"

namespace balora {

// Row i starts at from + i * from_stride; its transpose at to + i * to_stride.
void transpose16(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride);

// to (cols,rows) = from (rows,cols)^T, extents multiples of 16.
void transpose_floats(const float* from, int64_t rows, int64_t cols, float* to);

typedef uint32_t Words __attribute__((vector_size(64), may_alias, aligned(4)));

// For callers that hold the rows: they stay in registers where the caller's target has 512 bits.
BALORA_INLINE void transpose_words(Words* rows) {
  Wide<uint32_t> lines[16];  // aligned, as Words are not
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) lines[i] = rows[i];
  transpose_rows(lines);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = lines[i];
}

}  // namespace balora
