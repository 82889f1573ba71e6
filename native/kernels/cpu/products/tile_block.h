// A block of a tile product in registers. Inlined into functions that are compiled for the
// instructions of its vectors.
#pragma once
#include <cstdint>

#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/wide.h"

namespace balora::tile_block {

using Left = TileLeft;

// Row m of A.
template <Left kLeft, typename T>
BALORA_INLINE const T* row_of(const T* a, int64_t lda, int64_t m) {
  return a + (kLeft == Left::kRows ? m * lda : m);
}

// sum (kRows, kVectors of kBytes) += A (kRows,depth) B (depth, columns of sum), in the order of the
// depth. B is aligned to its vectors.
template <Left kLeft, int kRows, int kVectors, int kBytes, typename T, typename V>
BALORA_INLINE void add_products(int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                                V (&sum)[kRows][kVectors]) {
  constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
  for (int64_t k = 0; k < depth; ++k) {
    V right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      right[v] = *reinterpret_cast<const V*>(b + k * ldb + v * kWidth);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T value = kLeft == Left::kRows ? a[r * lda + k] : a[k * lda + r];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += value * right[v];
    }
  }
}

// C = A B, or +=, of a block that stays in registers over the whole of k.
template <typename T, Left kLeft, int kBytes, int kRows, int kVectors = 2>
BALORA_INLINE void block(TileShape s, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                         int64_t ldc, bool accumulate) {
  typedef Vector<T, kBytes> V __attribute__((may_alias));
  V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const V* row = reinterpret_cast<const V*>(c + r * ldc);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = accumulate ? row[v] : V{};
  }
  add_products<kLeft, kRows, kVectors, kBytes>(s.k, a, lda, b, ldb, sum);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    V* row = reinterpret_cast<V*>(c + r * ldc);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = sum[r][v];
  }
}

// A product by such blocks, and by those of one vector where columns for no more are left.
template <typename T, Left kLeft, int kBytes, int kRows>
BALORA_INLINE void product(TileShape s, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                           int64_t ldc, bool accumulate) {
  constexpr int64_t kColumns = 2 * kBytes / static_cast<int64_t>(sizeof(T));
  int64_t n = 0;
  for (; n + kColumns <= s.n; n += kColumns) {  // a panel of B stays in the first-level cache
    for (int64_t m = 0; m < s.m; m += kRows) {
      block<T, kLeft, kBytes, kRows>(s, row_of<kLeft>(a, lda, m), lda, b + n, ldb, c + m * ldc + n,
                                     ldc, accumulate);
    }
  }
  for (int64_t m = 0; n < s.n && m < s.m; m += kRows) {
    block<T, kLeft, kBytes, kRows, 1>(s, row_of<kLeft>(a, lda, m), lda, b + n, ldb, c + m * ldc + n,
                                      ldc, accumulate);
  }
}

// The same where A lies as the operands say.
template <int kBytes, int kRows, typename T>
BALORA_INLINE void product(const TileOperands<T>& o) {
  if (o.left == Left::kRows) {
    product<T, Left::kRows, kBytes, kRows>(o.shape, o.a, o.lda, o.b, o.ldb, o.c, o.ldc,
                                           o.accumulate);
  } else {
    product<T, Left::kColumns, kBytes, kRows>(o.shape, o.a, o.lda, o.b, o.ldb, o.c, o.ldc,
                                              o.accumulate);
  }
}

}  // namespace balora::tile_block
