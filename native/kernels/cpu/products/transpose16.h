// A 16 x 16 block of 32-bit words, transposed in registers.
#pragma once
#include <cstdint>
#include <utility>

#include "kernels/cpu/runtime/inline.h"

namespace balora {

// Row i starts at from + i * from_stride; its transpose at to + i * to_stride.
void transpose16(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride);

// to (cols,rows) = from (rows,cols)^T, extents multiples of 16.
void transpose_floats(const float* from, int64_t rows, int64_t cols, float* to);

typedef uint32_t Words __attribute__((vector_size(64), may_alias, aligned(4)));

// Rows i and i + kStep trade their off-diagonal runs of kStep words.
template <int kStep, int... kLane>
BALORA_INLINE void trade_words(Words* rows, std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & kStep) continue;
    const Words a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shufflevector(a, b, (kLane & kStep ? 16 + kLane - kStep : kLane)...);
    rows[i + kStep] =
        __builtin_shufflevector(a, b, (kLane & kStep ? 16 + kLane : kLane + kStep)...);
  }
}

// For callers that hold the rows: they stay in registers where the caller's target has 512 bits.
BALORA_INLINE void transpose_words(Words* rows) {
  constexpr std::make_integer_sequence<int, 16> kLanes;
  trade_words<8>(rows, kLanes);
  trade_words<4>(rows, kLanes);
  trade_words<2>(rows, kLanes);
  trade_words<1>(rows, kLanes);
}

}  // namespace balora
