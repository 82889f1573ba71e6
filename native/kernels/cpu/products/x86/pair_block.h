// A block of a tile product of bf16 in registers of AVX-512.
#pragma once
#include "kernels/cpu/products/tile_block.h"
#include "kernels/cpu/runtime/x86/targets.h"

namespace balora::tile_block {

// sum += A B of bf16 for kSteps pairs of k. B is in pair order (tile_gemm.h).
template <int kSteps, int kRows, int kVectors>
BF16_TARGET BALORA_INLINE void add_pairs(const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                                         __m512 (&sum)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int64_t step = 0; step < kSteps; ++step) {
    __m512bh right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      right[v] = (__m512bh)_mm512_load_si512(b + 2 * step * ldb + 32 * v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh value = broadcast_pair(a + r * lda + 2 * step);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], value, right[v]);
      }
    }
  }
}

// sum = A B of bf16.
template <int kRows, int kVectors>
BF16_TARGET BALORA_INLINE void pair_products(int64_t depth, const bf16* a, int64_t lda,
                                             const bf16* b, int64_t ldb,
                                             __m512 (&sum)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (auto& row : sum) {
#pragma GCC unroll 4
    for (__m512& value : row) value = _mm512_setzero_ps();
  }
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8, a += 8, b += 8 * ldb) add_pairs<4>(a, lda, b, ldb, sum);
  for (; k < depth; k += 2, a += 2, b += 2 * ldb) add_pairs<1>(a, lda, b, ldb, sum);
}

}  // namespace balora::tile_block
