#include "kernels/cpu/norm/norm_bf16.h"

#include <cmath>

#include "kernels/cpu/runtime/lanes.h"
#include "tensor/errors.h"

namespace balora {

#ifdef BALORA_TILES
namespace {

using namespace lanes;

BF16_TARGET BALORA_INLINE __m512 shifted_weight(const RmsNormRow& norm, int64_t c,
                                                __mmask16 there) {
  return _mm512_add_ps(load_bf16(norm.weight + c, there), all(norm.weight_offset));
}

BF16_TARGET BALORA_INLINE __m512 as_bf16(__m512 value) {
  return widened((__m256i)_mm512_cvtneps_pbh(value));
}

// A row once its sum of squares is known; returns rstd.
BF16_TARGET BALORA_INLINE float normalise(const RmsNormRow& norm, const bf16* row, __m512 squares,
                                          bf16* y) {
  const auto channels = static_cast<float>(norm.channels);
  const float rstd = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / channels + norm.eps);
  const __m512 scale = all(rstd);
  for (int64_t c = 0; c < norm.channels; c += 16) {
    const __mmask16 there = first16(norm.channels - c);
    __m512 value = _mm512_mul_ps(load_bf16(row + c, there), scale);
    if (norm.cast_before_weight) value = as_bf16(value);
    store_bf16(y + c, there, _mm512_mul_ps(value, shifted_weight(norm, c, there)));
  }
  return rstd;
}

}  // namespace

BF16_TARGET float rms_norm_row_bf16(const RmsNormRow& norm, const bf16* x, bf16* y) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < norm.channels; c += 16) {
    const __m512 value = load_bf16(x + c, first16(norm.channels - c));
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  return normalise(norm, x, squares, y);
}

BF16_TARGET float rms_norm_add_row_bf16(const RmsNormRow& norm, const bf16* x, const bf16* residual,
                                        bf16* sum, bf16* y) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < norm.channels; c += 16) {
    const __mmask16 there = first16(norm.channels - c);
    const __m512 value =
        as_bf16(_mm512_add_ps(load_bf16(x + c, there), load_bf16(residual + c, there)));
    squares = _mm512_fmadd_ps(value, value, squares);
    store_bf16(sum + c, there, value);
  }
  return normalise(norm, sum, squares, y);
}

BF16_TARGET void rms_norm_backward_row_bf16(const RmsNormRow& norm, const bf16* dy,
                                            const bf16* dsum, const bf16* x, float rstd, bf16* dx) {
  __m512 dot = _mm512_setzero_ps();
  for (int64_t c = 0; c < norm.channels; c += 16) {
    const __mmask16 there = first16(norm.channels - c);
    const __m512 g = _mm512_mul_ps(load_bf16(dy + c, there), shifted_weight(norm, c, there));
    dot = _mm512_fmadd_ps(g, load_bf16(x + c, there), dot);
  }
  const auto channels = static_cast<float>(norm.channels);
  const __m512 mean = all(_mm512_reduce_add_ps(dot) * rstd * rstd / channels), scale = all(rstd);
  for (int64_t c = 0; c < norm.channels; c += 16) {
    const __mmask16 there = first16(norm.channels - c);
    const __m512 g = _mm512_mul_ps(load_bf16(dy + c, there), shifted_weight(norm, c, there));
    const __m512 through = _mm512_fnmadd_ps(load_bf16(x + c, there), mean, g);
    const __m512 beside = dsum ? load_bf16(dsum + c, there) : _mm512_setzero_ps();
    store_bf16(dx + c, there, _mm512_fmadd_ps(scale, through, beside));
  }
}

#else

float rms_norm_row_bf16(const RmsNormRow&, const bf16*, bf16*) {
  throw UnsupportedError("this build has no AVX512-BF16 kernels");
}
float rms_norm_add_row_bf16(const RmsNormRow&, const bf16*, const bf16*, bf16*, bf16*) {
  throw UnsupportedError("this build has no AVX512-BF16 kernels");
}
void rms_norm_backward_row_bf16(const RmsNormRow&, const bf16*, const bf16*, const bf16*, float,
                                bf16*) {
  throw UnsupportedError("this build has no AVX512-BF16 kernels");
}

#endif

}  // namespace balora
