// Values of codes of 4 bits (four_bit_codes.h), 32 at a time.
#include "io/four_bit_codes.h"

#include <immintrin.h>

namespace balora::io::x86 {

__attribute__((target("avx512f,avx512bw,avx512vl"))) void decode_codes(const uint8_t* packed,
                                                                       int64_t first, int64_t count,
                                                                       const float* code,
                                                                       float scale, float* out) {
  int64_t i = 0;
  if (first % 2 != 0 && count > 0) {
    io::decode_codes(packed, first, 1, code, scale, out);
    i = 1;
  }
  const __m512 codes = _mm512_loadu_ps(code), scales = _mm512_set1_ps(scale);
  const __m128i low = _mm_set1_epi8(15);
  const uint8_t* from = packed + (first + i) / 2;
  for (; i + 32 <= count; i += 32, from += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
    const __m128i odd = _mm_and_si128(bytes, low);
    const __m512i left = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(even, odd));
    const __m512i right = _mm512_cvtepu8_epi32(_mm_unpackhi_epi8(even, odd));
    _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_permutexvar_ps(left, codes), scales));
    _mm512_storeu_ps(out + i + 16, _mm512_mul_ps(_mm512_permutexvar_ps(right, codes), scales));
  }
  io::decode_codes(packed, first + i, count - i, code, scale, out + i);
}

}  // namespace balora::io::x86
