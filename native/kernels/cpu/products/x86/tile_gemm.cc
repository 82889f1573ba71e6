// tile_gemm.h on AVX2, AVX-512, AVX512-BF16 and AMX.
#include "kernels/cpu/products/tile_gemm.h"

#include <algorithm>

#include "kernels/cpu/products/x86/amx_blocks.h"
#include "kernels/cpu/products/x86/pair_block.h"

#define AVX2_TARGET __attribute__((target("avx2,fma,bmi2")))
// fma by name: not every compiler takes it from avx512f.
#define WIDE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,bmi2")))

namespace balora::x86 {

using tile_block::block;
using tile_block::Left;
using tile_block::product;
using tile_block::row_of;

AVX2_TARGET void multiply_avx2(const TileOperands<float>& o) {
  product<32, 4>(o);
}
AVX2_TARGET void multiply_avx2(const TileOperands<double>& o) {
  product<32, 4>(o);
}
WIDE_TARGET void multiply_avx512(const TileOperands<double>& o) {
  product<64, 8>(o);
}

namespace {

// Blocks of four vectors read A once, and fewer words in all.
template <Left kLeft>
WIDE_TARGET BALORA_INLINE void wide_product(TileShape s, const float* a, int64_t lda,
                                            const float* b, int64_t ldb, float* c, int64_t ldc,
                                            bool accumulate) {
  int64_t n = 0;
  for (; n + 64 <= s.n; n += 64) {
    for (int64_t m = 0; m < s.m; m += 4) {
      block<float, kLeft, 64, 4, 4>(s, row_of<kLeft>(a, lda, m), lda, b + n, ldb, c + m * ldc + n,
                                    ldc, accumulate);
    }
  }
  product<float, kLeft, 64, 8>({s.m, s.n - n, s.k}, a, lda, b + n, ldb, c + n, ldc, accumulate);
}

}  // namespace

WIDE_TARGET void multiply_avx512(const TileOperands<float>& o) {
  const auto multiply =
      o.left == Left::kRows ? &wide_product<Left::kRows> : &wide_product<Left::kColumns>;
  multiply(o.shape, o.a, o.lda, o.b, o.ldb, o.c, o.ldc, o.accumulate);
}

// ---- bf16 ---------------------------------------------------------------------------------------

namespace {

// C is added at the end: sums that begin with it take a Zen 4 two products more for each vector.
template <int kRows, int kVectors>
BF16_TARGET BALORA_INLINE void bf16_block(int64_t depth, const bf16* a, int64_t lda, const bf16* b,
                                          int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  __m512 sum[kRows][kVectors];
  tile_block::pair_products(depth, a, lda, b, ldb, sum);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* const to = c + r * ldc + 16 * v;
      _mm512_store_ps(to, accumulate ? _mm512_add_ps(_mm512_load_ps(to), sum[r][v]) : sum[r][v]);
    }
  }
}

}  // namespace

// Blocks are as wide as those of f32.
BF16_TARGET void multiply_avx512(const TileOperands<bf16, float>& o) {
  const auto [s, a, lda, b, ldb, c, ldc, accumulate, left] = o;
  int64_t n = 0;
  for (; n + 64 <= s.n; n += 64) {
    for (int64_t m = 0; m < s.m; m += 4) {
      bf16_block<4, 4>(s.k, a + m * lda, lda, b + 2 * n, ldb, c + m * ldc + n, ldc, accumulate);
    }
  }
  for (; n + 32 <= s.n; n += 32) {
    for (int64_t m = 0; m < s.m; m += 8) {
      bf16_block<8, 2>(s.k, a + m * lda, lda, b + 2 * n, ldb, c + m * ldc + n, ldc, accumulate);
    }
  }
  if (n == s.n) return;
  for (int64_t m = 0; m < s.m; m += 8) {
    bf16_block<8, 1>(s.k, a + m * lda, lda, b + 2 * n, ldb, c + m * ldc + n, ldc, accumulate);
  }
}

namespace {

constexpr int64_t kColumns = 32;  // whose part of B stays in tiles
constexpr int64_t kGroup = 16;    // rows of A
constexpr int64_t kStep = 32;

// c (m,32) = a (m,32 kSteps) b, or +=: b stays in tiles 4 to 7 of the processor while rows of A go
// by in 2 and 3, sixteen at a time, and their sums are in 0 and 1. It takes half of the loads of
// blocks of 32 x 32.
template <int kSteps>
AMX_TARGET BALORA_INLINE void multiply_columns(amx::Left a, int64_t m, amx::Right b, float* c,
                                               int64_t ldc, bool accumulates) {
  static_assert(kSteps == 1 || kSteps == 2);
  const int64_t a_bytes = a.ld * 2, b_bytes = b.ld * 4, c_bytes = ldc * 4;
  _tile_loadd(4, b.data, b_bytes);
  _tile_loadd(5, b.data + 32, b_bytes);
  if constexpr (kSteps == 2) {
    _tile_loadd(6, b.data + kStep * b.ld, b_bytes);
    _tile_loadd(7, b.data + kStep * b.ld + 32, b_bytes);
  }
  for (int64_t row = 0; row < m; row += kGroup) {
    const bf16* const left = a.data + row * a.ld;
    float* const sums = c + row * ldc;
    if (accumulates) {
      _tile_loadd(0, sums, c_bytes);
      _tile_loadd(1, sums + 16, c_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    _tile_loadd(2, left, a_bytes);
    _tile_dpbf16ps(0, 2, 4);
    _tile_dpbf16ps(1, 2, 5);
    if constexpr (kSteps == 2) {
      _tile_loadd(3, left + kStep, a_bytes);
      _tile_dpbf16ps(0, 3, 6);
      _tile_dpbf16ps(1, 3, 7);
    }
    _tile_stored(0, sums, c_bytes);
    _tile_stored(1, sums + 16, c_bytes);
  }
}

// c (32,n) = a (32,k) b (k,n), or +=, whose sums stay in tiles whatever k is.
AMX_TARGET void multiply_rows(const TileOperands<bf16, float>& o) {
  for (int64_t n = 0; n < o.shape.n; n += amx::kSide) {
    amx::begin_block(o.accumulate ? o.c + n : nullptr, o.ldc);
    for (int64_t k = 0; k < o.shape.k; k += amx::kSide) {
      amx::add_step({o.a + k, o.lda}, {o.b + k * o.ldb + 2 * n, o.ldb});
    }
    amx::end_block(o.c + n, o.ldc);
  }
}

}  // namespace

AMX_TARGET void multiply_amx(const TileOperands<bf16, float>& o) {
  const auto [s, a, lda, b, ldb, c, ldc, accumulate, how] = o;
  if (s.m == amx::kSide) return multiply_rows(o);
  if (s.k == 0 && !accumulate) {
    for (int64_t i = 0; i < s.m; ++i) std::fill(c + i * ldc, c + i * ldc + s.n, 0.0f);
  }
  // The compiler does not know what memory the tile instructions use.
  asm volatile("" ::: "memory");
  for (int64_t n = 0; n < s.n; n += kColumns) {
    for (int64_t k = 0; k < s.k; k += 2 * kStep) {
      const amx::Left left{a + k, lda};
      const amx::Right right{b + k * ldb + 2 * n, ldb};
      if (s.k - k > kStep) {
        multiply_columns<2>(left, s.m, right, c + n, ldc, accumulate || k > 0);
      } else {
        multiply_columns<1>(left, s.m, right, c + n, ldc, accumulate || k > 0);
      }
    }
  }
  asm volatile("" ::: "memory");
}

AMX_TARGET void open_amx() {
  configure_tiles();
}
AMX_TARGET void close_amx() {
  _tile_release();
}

}  // namespace balora::x86
