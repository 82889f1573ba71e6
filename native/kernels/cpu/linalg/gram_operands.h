// Packed operands of A^T A, for tile_gemm, in 32-bit words: of one f32, or of two bf16 that follow
// each other in k.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/dispatch.h"

namespace balora {

template <typename T>
constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));

constexpr int64_t kGramPanel = 64;  // columns of B that a thread keeps in its cache

BALORA_INLINE uint32_t pair_of(float even, float odd) {
  return to_bf16(even).bits | static_cast<uint32_t>(to_bf16(odd).bits) << 16;
}

// 16 lines of 16 words of T, from the rows of w. Pairs of bf16 are of two rows (across), or follow
// each other in one.
template <typename T, typename S>
BALORA_INLINE void read_words(const S* w, int64_t ld, bool across, uint32_t* words) {
  for (int64_t i = 0; i < 16; ++i) {
    uint32_t* line = words + i * 16;
    const S* row = w + i * (std::is_same_v<T, bf16> && across ? 2 : 1) * ld;
    if constexpr (std::is_same_v<T, float>) {
      for (int64_t j = 0; j < 16; ++j) line[j] = std::bit_cast<uint32_t>(float(load(row[j])));
    } else if constexpr (std::is_same_v<S, bf16>) {
      const auto word = [&](bf16 even, bf16 odd) { return even.bits | uint32_t{odd.bits} << 16; };
      if (!across) {
        std::memcpy(line, row, 64);
      } else {
#pragma omp simd
        for (int64_t j = 0; j < 16; ++j) line[j] = word(row[j], row[ld + j]);
      }
    } else if (across) {
      for (int64_t j = 0; j < 16; ++j) line[j] = pair_of(load(row[j]), load(row[ld + j]));
    } else {
      for (int64_t j = 0; j < 16; ++j) line[j] = pair_of(load(row[2 * j]), load(row[2 * j + 1]));
    }
  }
}

// A^T, and A in panels of columns, each as tile_gemm wants B.
template <typename T>
struct GramOperands {
  int64_t columns;  // of A, a multiple of 16
  int64_t words;    // of a column
  // Words from a line of A^T to the next: an odd number of cache lines, or they share cache sets.
  int64_t left_step;
  uint32_t *left, *right;

  static constexpr int64_t left_words(int64_t depth) { return depth / kPerWord<T> + 16; }
  static constexpr int64_t right_words(int64_t depth) { return depth / kPerWord<T>; }

  int64_t width(int64_t panel) const { return std::min(kGramPanel, columns - panel); }

  // 16 lines of 16 words: of columns from `column` on, by_word, or a column each.
  void place(const uint32_t* lines, bool by_word, int64_t column, int64_t word) const {
    const int64_t panel = column / kGramPanel * kGramPanel, step = width(panel);
    uint32_t* to_right = right + panel * words + word * step + column - panel;
    uint32_t* to_left = left + column * left_step + word;
    uint32_t* copy = by_word ? to_right : to_left;
    const int64_t copy_step = by_word ? step : left_step;
    for (int64_t i = 0; i < 16; ++i) std::memcpy(copy + i * copy_step, lines + i * 16, 64);
    transpose16(lines, 16, by_word ? to_left : to_right, by_word ? left_step : step);
  }

  // c (rows,width of the panel) = A^T[column..] A[:, panel], of `count` from `depth` of k on.
  void multiply(int64_t column, int64_t rows, int64_t panel, int64_t depth, int64_t count, float* c,
                int64_t ldc) const {
    const int64_t word = depth / kPerWord<T>;
    tile_gemm({rows, width(panel), count},
              reinterpret_cast<const T*>(left + column * left_step + word), left_step * kPerWord<T>,
              reinterpret_cast<const T*>(right + panel * words + word * width(panel)), c, ldc,
              false);
  }
};

}  // namespace balora
