// RMSNorm on rows of bf16 (norm.h) in AVX512-BF16 instructions.
#include <cmath>

#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/norm/partials.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/x86/lanes.h"

namespace balora::x86 {

namespace {

using namespace lanes;

struct RmsNormRow {
  const bf16* weight;
  int64_t channels;
  float eps, weight_offset;
  bool cast_before_weight;

  template <typename O>
  RmsNormRow(const O& o, double epsilon)
      : weight(data_of<bf16>(o.weight)),
        channels(view_numel(*o.weight)),
        eps(static_cast<float>(epsilon)),
        weight_offset(static_cast<float>(o.weight_offset)),
        cast_before_weight(o.cast_before_weight != 0) {}
};

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

// Returns rstd. Where there is a residual, it is added first.
BF16_TARGET float forward_row(const RmsNormRow& norm, const bf16* x, const bf16* residual,
                              bf16* sum, bf16* y) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < norm.channels; c += 16) {
    const __mmask16 there = first16(norm.channels - c);
    __m512 value = load_bf16(x + c, there);
    if (residual) {
      value = as_bf16(_mm512_add_ps(value, load_bf16(residual + c, there)));
      store_bf16(sum + c, there, value);
    }
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  return normalise(norm, residual ? sum : x, squares, y);
}

BF16_TARGET void backward_row(const RmsNormRow& norm, const bf16* dy, const bf16* dsum,
                              const bf16* x, float rstd, bf16* dx) {
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

template <typename Body>
void for_each_row(Context* ctx, int64_t rows, const Body& body) {
  share_out(ctx, rows, kNormGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) body(n);
  });
}

}  // namespace

void rms_norm_forward(Context* ctx, const balora_rms_norm_add_forward& o) {
  const RmsNormRow norm(o, o.eps);
  for_each_row(ctx, o.x->shape[0], [&](int64_t n) {
    const int64_t at = n * norm.channels;
    const bf16* residual = o.residual ? data_of<bf16>(o.residual) + at : nullptr;
    bf16* sum = o.residual ? data_of<bf16>(o.sum) + at : nullptr;
    data_of<float>(o.rstd)[n] =
        forward_row(norm, data_of<bf16>(o.x) + at, residual, sum, data_of<bf16>(o.y) + at);
  });
}

void rms_norm_backward(Context* ctx, const balora_rms_norm_backward& o) {
  const RmsNormRow norm(o, 0);
  for_each_row(ctx, o.x->shape[0], [&](int64_t n) {
    const int64_t at = n * norm.channels;
    backward_row(norm, data_of<bf16>(o.dy) + at, o.dsum ? data_of<bf16>(o.dsum) + at : nullptr,
                 data_of<bf16>(o.x) + at, data_of<float>(o.rstd)[n], data_of<bf16>(o.dx) + at);
  });
}

}  // namespace balora::x86
