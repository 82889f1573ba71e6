// A block of a tile product of bf16 in registers of AVX-512.
#pragma once
#include "kernels/cpu/products/tile_block.h"
#include "kernels/cpu/runtime/x86/targets.h"

namespace balora::tile_block {

struct Nothing {
  BALORA_INLINE void operator()(int64_t) const {}
};

template <int kRows, int kVectors>
BF16_TARGET BALORA_INLINE void clear(__m512 (&sum)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (auto& row : sum) {
#pragma GCC unroll 4
    for (__m512& value : row) value = _mm512_setzero_ps();
  }
}

// sum += A B of bf16 for kSteps pairs of k. B is in pair order (tile_gemm.h), and so is an A that
// lies by columns, 2 * lda elements from a pair of k to the next. meanwhile(i) runs after the i-th
// pair: where it multiplies nothing, the products lose no time to it. In a loop it must not branch:
// an outcome that was not predicted costs as much as ten of these products.
template <Left kLeft, int kSteps, int kRows, int kVectors, typename Meanwhile>
BF16_TARGET BALORA_INLINE void add_pairs(const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                                         __m512 (&sum)[kRows][kVectors],
                                         const Meanwhile& meanwhile) {
#pragma GCC unroll 16
  for (int64_t step = 0; step < kSteps; ++step) {
    __m512bh right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      right[v] = (__m512bh)_mm512_load_si512(b + 2 * step * ldb + 32 * v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const bf16* pair = kLeft == Left::kRows ? a + r * lda + 2 * step : a + step * 2 * lda + 2 * r;
      const __m512bh value = broadcast_pair(pair);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], value, right[v]);
      }
    }
    meanwhile(step);
  }
}

// sum = A B of bf16.
template <Left kLeft = Left::kRows, int kRows, int kVectors>
BF16_TARGET BALORA_INLINE void pair_products(int64_t depth, const bf16* a, int64_t lda,
                                             const bf16* b, int64_t ldb,
                                             __m512 (&sum)[kRows][kVectors]) {
  clear(sum);
  const int64_t step = kLeft == Left::kRows ? 2 : 2 * lda;
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8, a += 4 * step, b += 8 * ldb) {
    add_pairs<kLeft, 4>(a, lda, b, ldb, sum, Nothing{});
  }
  for (; k < depth; k += 2, a += step, b += 2 * ldb) {
    add_pairs<kLeft, 1>(a, lda, b, ldb, sum, Nothing{});
  }
}

}  // namespace balora::tile_block
