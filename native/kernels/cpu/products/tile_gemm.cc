#include "kernels/cpu/products/tile_gemm.h"

#include <algorithm>

#include "kernels/cpu/products/amx_blocks.h"
#include "kernels/cpu/products/tile_block.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/products/tiles_target.h"
#include "kernels/cpu/runtime/inline.h"
#include "platform/cpu.h"

#if defined(__x86_64__)
#define BALORA_X86 1
#endif

namespace balora {
namespace {

// ---- f32 and f64: a block of kRows x kVectors stays in registers over the whole of k -----------

using tile_block::Left;
using tile_block::row_of;

template <typename T, Left kLeft, int kBytes, int kRows, int kVectors = 2>
BALORA_INLINE void block(TileShape s, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                         int64_t ldc, bool accumulate) {
  using V = typename tile_block::VectorOf<T, kBytes>::type;
  V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const V* row = reinterpret_cast<const V*>(c + r * ldc);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = accumulate ? row[v] : V{};
  }
  tile_block::add_products<kLeft, kRows, kVectors, kBytes>(s.k, a, lda, b, ldb, sum);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    V* row = reinterpret_cast<V*>(c + r * ldc);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = sum[r][v];
  }
}

template <typename T, Left kLeft, int kBytes, int kRows>
BALORA_INLINE void product(TileShape s, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                           int64_t ldc, bool accumulate) {
  constexpr int64_t kColumns = 2 * kBytes / static_cast<int64_t>(sizeof(T));
  for (int64_t n = 0; n < s.n; n += kColumns) {  // a panel of B stays in the first-level cache
    for (int64_t m = 0; m < s.m; m += kRows) {
      block<T, kLeft, kBytes, kRows>(s, row_of<kLeft>(a, lda, m), lda, b + n, ldb, c + m * ldc + n,
                                     ldc, accumulate);
    }
  }
}

template <typename T>
using Product = void (*)(TileShape, const T*, int64_t, const T*, int64_t, T*, int64_t, bool);

// Each instruction level as two functions of its own, chosen once.
#define LEVEL(name, T, target, bytes, rows)                                                       \
  target void name(TileShape s, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,           \
                   int64_t ldc, bool accumulate) {                                                \
    product<T, Left::kRows, bytes, rows>(s, a, lda, b, ldb, c, ldc, accumulate);                  \
  }                                                                                               \
  target void name##_columns(TileShape s, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, \
                             int64_t ldc, bool accumulate) {                                      \
    product<T, Left::kColumns, bytes, rows>(s, a, lda, b, ldb, c, ldc, accumulate);               \
  }
LEVEL(f32_plain, float, , 16, 4)
LEVEL(f64_plain, double, , 16, 4)
#if BALORA_X86
#define AVX2_TARGET __attribute__((target("avx2,fma,bmi2")))
// fma by name: not every compiler takes it from avx512f.
#define WIDE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,bmi2")))
LEVEL(f32_avx2, float, AVX2_TARGET, 32, 4)
LEVEL(f64_avx2, double, AVX2_TARGET, 32, 4)
LEVEL(f64_avx512, double, WIDE_TARGET, 64, 8)

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
  const int64_t pairs = (s.n - n) / kTileUnit * kTileUnit;
  product<float, kLeft, 64, 8>({s.m, pairs, s.k}, a, lda, b + n, ldb, c + n, ldc, accumulate);
  n += pairs;
  if (n == s.n) return;
  for (int64_t m = 0; m < s.m; m += 8) {
    block<float, kLeft, 64, 8, 1>(s, row_of<kLeft>(a, lda, m), lda, b + n, ldb, c + m * ldc + n,
                                  ldc, accumulate);
  }
}
WIDE_TARGET void f32_avx512(TileShape s, const float* a, int64_t lda, const float* b, int64_t ldb,
                            float* c, int64_t ldc, bool accumulate) {
  wide_product<Left::kRows>(s, a, lda, b, ldb, c, ldc, accumulate);
}
WIDE_TARGET void f32_avx512_columns(TileShape s, const float* a, int64_t lda, const float* b,
                                    int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  wide_product<Left::kColumns>(s, a, lda, b, ldb, c, ldc, accumulate);
}
#endif
#undef LEVEL

// A product whose A lies in rows, and one whose A lies in columns.
template <typename T>
struct Products {
  Product<T> rows, columns;
};

Products<float> choose_f32() {
#if BALORA_X86
  if (platform::cpu().uses(platform::kAvx512)) return {f32_avx512, f32_avx512_columns};
  if (platform::cpu().uses(platform::kAvx2)) return {f32_avx2, f32_avx2_columns};
#endif
  return {f32_plain, f32_plain_columns};
}
const Products<float>& f32_products() {
  static const Products<float> products = choose_f32();
  return products;
}

Products<double> choose_f64() {
#if BALORA_X86
  if (platform::cpu().uses(platform::kAvx512)) return {f64_avx512, f64_avx512_columns};
  if (platform::cpu().uses(platform::kAvx2)) return {f64_avx2, f64_avx2_columns};
#endif
  return {f64_plain, f64_plain_columns};
}
const Products<double>& f64_products() {
  static const Products<double> products = choose_f64();
  return products;
}

// ---- bf16 ---------------------------------------------------------------------------------------

using Bf16Product = void (*)(TileShape, const bf16*, int64_t, const bf16*, int64_t, float*, int64_t,
                             bool);

#ifdef BALORA_TILES

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

// Blocks are as wide as those of f32.
BF16_TARGET void bf16_avx512(TileShape s, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                             float* c, int64_t ldc, bool accumulate) {
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

AMX_TARGET void bf16_amx(TileShape s, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                         float* c, int64_t ldc, bool accumulate) {
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

AMX_TARGET void release_tiles() {
  _tile_release();
}

Bf16Product choose_bf16() {
  if (tiles_use_amx()) return &bf16_amx;
  return platform::cpu().uses(platform::kBf16) ? &bf16_avx512 : nullptr;
}

#else

void configure_tiles() {}
void release_tiles() {}
Bf16Product choose_bf16() {
  return nullptr;
}

#endif

Bf16Product bf16_product() {
  static const Bf16Product product = choose_bf16();
  return product;
}

}  // namespace

void tile_gemm(TileShape shape, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool accumulate) {
  f32_products().rows(shape, a, lda, b, ldb, c, ldc, accumulate);
}
void tile_gemm(TileShape shape, const double* a, int64_t lda, const double* b, int64_t ldb,
               double* c, int64_t ldc, bool accumulate) {
  f64_products().rows(shape, a, lda, b, ldb, c, ldc, accumulate);
}
void tile_gemm_columns(TileShape shape, const float* a, int64_t lda, const float* b, int64_t ldb,
                       float* c, int64_t ldc, bool accumulate) {
  f32_products().columns(shape, a, lda, b, ldb, c, ldc, accumulate);
}
void tile_gemm_columns(TileShape shape, const double* a, int64_t lda, const double* b, int64_t ldb,
                       double* c, int64_t ldc, bool accumulate) {
  f64_products().columns(shape, a, lda, b, ldb, c, ldc, accumulate);
}

void tile_gemm(TileShape shape, const bf16* a, int64_t lda, const bf16* b, int64_t ldb, float* c,
               int64_t ldc, bool accumulate) {
  bf16_product()(shape, a, lda, b, ldb, c, ldc, accumulate);
}

template <>
int64_t tile_columns<bf16>() {
  return tiles_use_amx() ? kTileUnit : 16;
}
template <>
int64_t tile_step<bf16>() {
  return tiles_use_amx() ? kTileUnit : 8;
}

bool tile_gemm_has_bf16() {
  return bf16_product() != nullptr;
}

TileScope::TileScope() {
  if (tiles_use_amx()) configure_tiles();
}
TileScope::~TileScope() {
  if (tiles_use_amx()) release_tiles();
}

}  // namespace balora
