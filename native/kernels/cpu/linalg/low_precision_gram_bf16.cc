#include "kernels/cpu/linalg/low_precision_gram_bf16.h"

#include "kernels/cpu/products/tiles_target.h"
#include "kernels/cpu/runtime/inline.h"
#include "tensor/errors.h"

namespace balora::lanes {

#ifdef BALORA_TILES
namespace {

// Word l takes its lower half from l, its upper half from l + 16 or from l of another vector.
#define PAIRS(l, other) l, other + l
#define FOUR_PAIRS(l, other) \
  PAIRS(l, other), PAIRS(l + 1, other), PAIRS(l + 2, other), PAIRS(l + 3, other)
#define ALL_PAIRS(other) \
  FOUR_PAIRS(0, other), FOUR_PAIRS(4, other), FOUR_PAIRS(8, other), FOUR_PAIRS(12, other)
alignas(64) constexpr uint16_t kWithin[32] = {ALL_PAIRS(16)};
alignas(64) constexpr uint16_t kBetween[32] = {ALL_PAIRS(32)};
#undef ALL_PAIRS
#undef FOUR_PAIRS
#undef PAIRS

BF16_TARGET BALORA_INLINE __m512i rounded(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
BF16_TARGET BALORA_INLINE __m512i rounded_pairs(__m512 even, __m512 odd) {
  return _mm512_permutexvar_epi16(_mm512_load_si512(kWithin), rounded(even, odd));
}

BF16_TARGET BALORA_INLINE __m512 load16(const float* values) {
  return _mm512_loadu_ps(values);
}
BF16_TARGET BALORA_INLINE __m512 load16(const f16* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

// 16 words of two rows, and of one.
template <typename S>
BF16_TARGET BALORA_INLINE __m512i words_across(const S* even, const S* odd) {
  return rounded_pairs(load16(even), load16(odd));
}
template <typename S>
BF16_TARGET BALORA_INLINE __m512i words_along(const S* row) {
  return rounded(load16(row), load16(row + 16));
}
template <>
BF16_TARGET BALORA_INLINE __m512i words_across(const bf16* even, const bf16* odd) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd));
  return _mm512_permutex2var_epi16(_mm512_castsi256_si512(a), _mm512_load_si512(kBetween),
                                   _mm512_castsi256_si512(b));
}
template <>
BF16_TARGET BALORA_INLINE __m512i words_along(const bf16* row) {
  return _mm512_loadu_si512(row);
}

template <typename S>
BF16_TARGET BALORA_INLINE void lines(const S* w, int64_t ld, bool across, uint32_t* words) {
  for (int64_t i = 0; i < 16; ++i) {
    const S* row = w + i * (across ? 2 : 1) * ld;
    _mm512_storeu_si512(words + i * 16, across ? words_across(row, row + ld) : words_along(row));
  }
}

}  // namespace

BF16_TARGET void read_lines(const float* w, int64_t ld, bool across, uint32_t* words) {
  lines(w, ld, across, words);
}
BF16_TARGET void read_lines(const bf16* w, int64_t ld, bool across, uint32_t* words) {
  lines(w, ld, across, words);
}
BF16_TARGET void read_lines(const f16* w, int64_t ld, bool across, uint32_t* words) {
  lines(w, ld, across, words);
}

BF16_TARGET void pack_pairs(const float* x, int64_t rows, int64_t cols, uint32_t* to,
                            uint32_t* rest) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t i = 0; i < rows; i += 2) {
    for (int64_t j = 0; j < cols; j += 16) {
      const int64_t at = i / 2 * cols + j;
      const __m512 even = load16(x + i * cols + j), odd = load16(x + (i + 1) * cols + j);
      const __m512i pairs = rounded_pairs(even, odd);
      _mm512_storeu_si512(to + at, pairs);
      if (!rest) continue;
      const __m512 even_part = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
      const __m512 odd_part = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
      _mm512_storeu_si512(
          rest + at, rounded_pairs(_mm512_sub_ps(even, even_part), _mm512_sub_ps(odd, odd_part)));
    }
  }
}

BF16_TARGET void round_lines(const float* from, int64_t from_ld, bool rest, bf16* to,
                             int64_t to_ld) {
  for (int64_t i = 0; i < 16; ++i) {
    const __m512 values = load16(from + i * from_ld);
    __m256i narrow = (__m256i)_mm512_cvtneps_pbh(values);
    if (rest) {
      const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
      narrow = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(values, _mm512_castsi512_ps(wide)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * to_ld), narrow);
  }
}

#else

namespace {
[[noreturn]] void unreachable() {
  throw NativeError("randomized_svd: bf16 without instructions for it");
}
}  // namespace

void read_lines(const float*, int64_t, bool, uint32_t*) {
  unreachable();
}
void read_lines(const bf16*, int64_t, bool, uint32_t*) {
  unreachable();
}
void read_lines(const f16*, int64_t, bool, uint32_t*) {
  unreachable();
}
void pack_pairs(const float*, int64_t, int64_t, uint32_t*, uint32_t*) {
  unreachable();
}
void round_lines(const float*, int64_t, bool, bf16*, int64_t) {
  unreachable();
}

#endif

}  // namespace balora::lanes
