// Blocks of products in int8 by VPDPBUSD (int8_block.h).
#include <cstring>

#include "kernels/cpu/products/int8_block.h"
#include "kernels/cpu/products/x86/block_rows.h"
#include "kernels/cpu/runtime/x86/targets.h"

#define AVX_VNNI_TARGET __attribute__((target("avx2,fma,avxvnni,bmi2")))
#define AVX512_VNNI_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,bmi2")))

namespace balora::x86 {
namespace {

constexpr int64_t kTileBytes = kInt8StepBytes / 2;
constexpr int64_t kWord = 4;  // values of k in one

int32_t word_at(const uint8_t* from) {
  int32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// The next step of B, on its way from L2. Past the end of B it does nothing.
BALORA_INLINE void prefetch_line(const int8_t* b) {
  _mm_prefetch(reinterpret_cast<const char*>(b), _MM_HINT_T0);
}

// 16 finished sums of one row.
AVX512_VNNI_TARGET BALORA_INLINE void finish(const Int8Block& t, __m512i sums, int64_t row,
                                             int64_t column, float* to, bool accumulate) {
  __m512 scale = _mm512_set1_ps(t.row_scale[row]);
  if (t.scale) scale = _mm512_mul_ps(scale, _mm512_loadu_ps(t.scale + column));
  const __m512 value = _mm512_cvtepi32_ps(sums);
  _mm512_storeu_ps(to, accumulate ? _mm512_fmadd_ps(scale, value, _mm512_loadu_ps(to))
                                  : _mm512_mul_ps(scale, value));
}

// Sums as the vectors that the products' instructions make: GCC stores each of an array of 24
// __m512i, which it would have to cast, to memory after every product. A Zen 4 multiplies at half
// the speed then.
typedef int32_t Sums512 __attribute__((vector_size(64)));

// kRows x 2 vectors of sums, as tiles_cores.h has them.
template <int kRows>
AVX512_VNNI_TARGET void rows_512(const Int8Block& t, int64_t row, float* c, int64_t ldc,
                                 bool accumulate) {
  Sums512 sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] = (Sums512)_mm512_loadu_si512(t.offset);
    sums[r][1] = (Sums512)_mm512_loadu_si512(t.offset + 16);
  }
  const int64_t lda = t.lda, lda3 = 3 * lda;
  const uint8_t* a0 = t.a + row * lda;
  const uint8_t *a4 = a0 + 4 * lda, *a8 = a4 + 4 * lda;
  asm("" : "+r"(a4));  // a pointer for every fourth row: twelve would not fit
  if constexpr (kRows > 8) asm("" : "+r"(a8));
  const int8_t* b = t.b;
  for (int64_t step = 0; step < t.steps; ++step) {
    for (const int8_t* const end = b + kTileBytes; b < end; b += 64) {
      const __m512i low = _mm512_loadu_si512(b), high = _mm512_loadu_si512(b + kTileBytes);
      prefetch_line(b + kInt8StepBytes), prefetch_line(b + kInt8StepBytes + kTileBytes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* at = r < 4 ? a0 : r < 8 ? a4 : a8;
        const __m512i value = _mm512_set1_epi32(word_at(at + (r % 4 == 3 ? lda3 : r % 4 * lda)));
        sums[r][0] = (Sums512)_mm512_dpbusd_epi32((__m512i)sums[r][0], value, low);
        sums[r][1] = (Sums512)_mm512_dpbusd_epi32((__m512i)sums[r][1], value, high);
      }
      a0 += kWord, a4 += kWord, a8 += kWord;
    }
    b += kTileBytes;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    float* const to = c + (row + r) * ldc;
    finish(t, (__m512i)sums[r][0], row + r, 0, to, accumulate);
    finish(t, (__m512i)sums[r][1], row + r, 16, to + 16, accumulate);
  }
}

}  // namespace

AVX512_VNNI_TARGET void multiply_avx512_vnni(const Int8Block& t, int64_t rows, float* c,
                                             int64_t ldc, bool accumulate) {
  const bool twelve = twelve_rows_fit(t.lda);
  for (int64_t r = 0; r < rows;) {
    if (twelve && rows - r > 8) {
      rows_512<12>(t, r, c, ldc, accumulate), r += 12;
    } else if (rows - r > 4) {
      rows_512<8>(t, r, c, ldc, accumulate), r += 8;
    } else if (rows - r > 1) {
      rows_512<4>(t, r, c, ldc, accumulate), r += 4;
    } else {
      rows_512<1>(t, r, c, ldc, accumulate), r += 1;
    }
  }
}

namespace {

// kRows x 2 vectors of eight sums: 16 columns.
template <int kRows>
AVX_VNNI_TARGET void rows_256(const Int8Block& t, int64_t row, int64_t column, float* c,
                              int64_t ldc, bool accumulate) {
  __m256i sums[kRows][2];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    for (int half = 0; half < 2; ++half) {
      sums[r][half] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.offset + column + 8 * half));
    }
  }
  for (int64_t step = 0; step < t.steps; ++step) {
    const uint8_t* const a = t.a + row * t.lda + step * kInt8K;
    const int8_t* const b = t.b + step * kInt8StepBytes + column / 16 * kTileBytes;
    for (int64_t word = 0; word < kInt8K / kWord; ++word) {
      const auto* from = reinterpret_cast<const __m256i*>(b + word * 64);
      const __m256i low = _mm256_loadu_si256(from), high = _mm256_loadu_si256(from + 1);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m256i value = _mm256_set1_epi32(word_at(a + r * t.lda + word * kWord));
        sums[r][0] = _mm256_dpbusd_avx_epi32(sums[r][0], value, low);
        sums[r][1] = _mm256_dpbusd_avx_epi32(sums[r][1], value, high);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t j = column + 8 * half;
      float* const to = c + (row + r) * ldc + j;
      __m256 scale = _mm256_set1_ps(t.row_scale[row + r]);
      if (t.scale) scale = _mm256_mul_ps(scale, _mm256_loadu_ps(t.scale + j));
      const __m256 value = _mm256_cvtepi32_ps(sums[r][half]);
      _mm256_storeu_ps(to, accumulate ? _mm256_fmadd_ps(scale, value, _mm256_loadu_ps(to))
                                      : _mm256_mul_ps(scale, value));
    }
  }
}

}  // namespace

AVX_VNNI_TARGET void multiply_avx_vnni(const Int8Block& t, int64_t rows, float* c, int64_t ldc,
                                       bool accumulate) {
  for (int64_t column = 0; column < kInt8Columns; column += 16) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6) rows_256<6>(t, r, column, c, ldc, accumulate);
    for (; r + 2 <= rows; r += 2) rows_256<2>(t, r, column, c, ldc, accumulate);
    for (; r < rows; ++r) rows_256<1>(t, r, column, c, ldc, accumulate);
  }
}

}  // namespace balora::x86
