// Vectors of f32, for row loops in AVX-512 instructions, and beside bf16 in memory in those of
// AVX512-BF16, which only run where the processor has them. A compiler rounds to bf16 by integers,
// and takes twice as many instructions for an exponential.
#pragma once
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/cpu/runtime/x86/targets.h"
#include "tensor/dtype.h"

namespace balora::lanes {

AVX512_TARGET BALORA_INLINE __m512 all(float value) {
  return _mm512_set1_ps(value);
}

// A product rounded to f32. A compiler that may contract fuses that of _mm512_mul_ps with a sum.
AVX512_TARGET BALORA_INLINE __m512 rounded_product(__m512 x, __m512 y) {
  return _mm512_mul_round_ps(x, y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// The first `count` of 16 or 32 lanes.
BALORA_INLINE __mmask16 first16(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1);
}
BALORA_INLINE __mmask32 first32(int64_t count) {
  return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1;
}

// bf16 of 32 values.
BF16_TARGET BALORA_INLINE __m512i rounded(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

AVX512_TARGET BALORA_INLINE __m512 widened(__m256i values) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16);
}
AVX512_TARGET BALORA_INLINE __m512 load_bf16(const bf16* from, __mmask16 there) {
  return widened(_mm256_maskz_loadu_epi16(there, from));
}
BF16_TARGET BALORA_INLINE void store_bf16(bf16* to, __mmask16 there, __m512 values) {
  _mm256_mask_storeu_epi16(to, there, (__m256i)_mm512_cvtneps_pbh(values));
}

// The part of a value that rounding to bf16 drops.
BF16_TARGET BALORA_INLINE __m512 rounding_left(__m512 value) {
  return _mm512_sub_ps(value, widened((__m256i)_mm512_cvtneps_pbh(value)));
}

// 2^x by a polynomial of its fraction, which is in [0, 1), from the highest coefficient on. 0 for
// -infinity; keeps NaN.
template <size_t kCount>
AVX512_TARGET BALORA_INLINE __m512 exp2_by(const float (&polynomial)[kCount], __m512 x) {
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = all(polynomial[0]);
#pragma GCC unroll 8
  for (size_t i = 1; i < kCount; ++i) p = _mm512_fmadd_ps(p, r, all(polynomial[i]));
  return _mm512_scalef_ps(p, x);  // by 2 to the floor of x
}

// Within 3 ulp. The polynomial is the one nearest to 2^r of those that are 1 at 0 and 2 at 1: no
// probability is above 1, and there is no step where the fraction begins anew. It is within 1.1e-7.
AVX512_TARGET BALORA_INLINE __m512 exp2(__m512 x) {
  constexpr float kPolynomial[] = {1.87931862e-3f, 8.99099559e-3f, 5.58186769e-2f,
                                   0.240159273f,   0.693151712f,   1.0f};
  return exp2_by(kPolynomial, x);
}

// Within 3e-6 of its value, where rounding to bf16 may change 2e-3.
AVX512_TARGET BALORA_INLINE __m512 exp2_for_bf16(__m512 x) {
  constexpr float kPolynomial[] = {1.35341678e-2f, 5.20114601e-2f, 0.241442755f, 0.693003833f,
                                   1.00000262f};
  return exp2_by(kPolynomial, x);
}

// e^((x - y) scale), `factor` being scale times log2(e). The difference is taken before anything
// else is rounded, so that of two equal numbers is 0 however large they are. The rounded product
// makes the error grow with the distance, to 1e-6 of a result of e^-20.
AVX512_TARGET BALORA_INLINE __m512 exp_difference(__m512 x, __m512 y, __m512 factor) {
  return exp2(_mm512_mul_ps(_mm512_sub_ps(x, y), factor));
}
AVX512_TARGET BALORA_INLINE __m512 exp_difference(__m512 x, __m512 y) {
  return exp_difference(x, y, all(vec::kLog2e));
}

}  // namespace balora::lanes
