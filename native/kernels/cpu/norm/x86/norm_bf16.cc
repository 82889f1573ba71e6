// RMSNorm on rows of bf16 (norm.h) in AVX512-BF16 instructions.
#include <cmath>

#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/norm/partials.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/x86/lanes.h"

namespace balora::x86 {

namespace {

using namespace lanes;

BF16_TARGET BALORA_INLINE __m512 as_bf16(__m512 value) {
  return widened((__m256i)_mm512_cvtneps_pbh(value));
}

// The weights that channels are multiplied with.
template <typename O>
struct Weights {
  const bf16* stored;
  float offset;

  explicit Weights(const O& o)
      : stored(data_of<bf16>(o.weight)), offset(static_cast<float>(o.weight_offset)) {}
  BF16_TARGET BALORA_INLINE __m512 at(int64_t c, __mmask16 there) const {
    return _mm512_add_ps(load_bf16(stored + c, there), all(offset));
  }
};

// Where there is a residual, it is added first.
BF16_TARGET void forward_row(const balora_rms_norm_add_forward& o, int64_t n) {
  const int64_t channels = o.x->shape[1], first = n * channels;
  const Weights weights(o);
  const bf16* x = data_of<bf16>(o.x) + first;
  bf16* const y = data_of<bf16>(o.y) + first;
  const bf16* const residual = o.residual ? data_of<bf16>(o.residual) + first : nullptr;
  bf16* const sum = o.residual ? data_of<bf16>(o.sum) + first : nullptr;
  __m512 squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < channels; c += 16) {
    const __mmask16 there = first16(channels - c);
    __m512 value = load_bf16(x + c, there);
    if (residual) {
      value = as_bf16(_mm512_add_ps(value, load_bf16(residual + c, there)));
      store_bf16(sum + c, there, value);
    }
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  if (residual) x = sum;
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(channels);
  const float rstd = 1 / std::sqrt(mean + static_cast<float>(o.eps));
  data_of<float>(o.rstd)[n] = rstd;
  const bool cast_before_weight = o.cast_before_weight != 0;
  for (int64_t c = 0; c < channels; c += 16) {
    const __mmask16 there = first16(channels - c);
    __m512 value = _mm512_mul_ps(load_bf16(x + c, there), all(rstd));
    if (cast_before_weight) value = as_bf16(value);
    store_bf16(y + c, there, _mm512_mul_ps(value, weights.at(c, there)));
  }
}

BF16_TARGET void backward_row(const balora_rms_norm_backward& o, int64_t n) {
  const int64_t channels = o.x->shape[1], first = n * channels;
  const Weights weights(o);
  const bf16 *dy = data_of<bf16>(o.dy) + first, *x = data_of<bf16>(o.x) + first;
  const bf16* const dsum = o.dsum ? data_of<bf16>(o.dsum) + first : nullptr;
  bf16* const dx = data_of<bf16>(o.dx) + first;
  const float rstd = data_of<float>(o.rstd)[n];
  __m512 dot = _mm512_setzero_ps();
  for (int64_t c = 0; c < channels; c += 16) {
    const __mmask16 there = first16(channels - c);
    const __m512 g = _mm512_mul_ps(load_bf16(dy + c, there), weights.at(c, there));
    dot = _mm512_fmadd_ps(g, load_bf16(x + c, there), dot);
  }
  const __m512 scale = all(rstd);
  const __m512 mean = all(_mm512_reduce_add_ps(dot) * rstd * rstd / static_cast<float>(channels));
  for (int64_t c = 0; c < channels; c += 16) {
    const __mmask16 there = first16(channels - c);
    const __m512 g = _mm512_mul_ps(load_bf16(dy + c, there), weights.at(c, there));
    const __m512 through = _mm512_fnmadd_ps(load_bf16(x + c, there), mean, g);
    const __m512 beside = dsum ? load_bf16(dsum + c, there) : _mm512_setzero_ps();
    store_bf16(dx + c, there, _mm512_fmadd_ps(scale, through, beside));
  }
}

}  // namespace

void rms_norm_forward(Context* ctx, const balora_rms_norm_add_forward& o) {
  share_out(ctx, o.x->shape[0], kNormGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) forward_row(o, n);
  });
}

void rms_norm_backward(Context* ctx, const balora_rms_norm_backward& o) {
  share_out(ctx, o.x->shape[0], kNormGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) backward_row(o, n);
  });
}

}  // namespace balora::x86
