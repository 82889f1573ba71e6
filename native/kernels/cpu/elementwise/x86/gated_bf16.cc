// Gated activations of bf16 rows (gated.h) in AVX512-BF16 instructions.
#include "kernels/cpu/elementwise/gated.h"
#include "kernels/cpu/runtime/parallel.h"

#include "kernels/cpu/runtime/x86/lanes.h"

namespace balora::x86 {

namespace {

using namespace lanes;

BF16_TARGET BALORA_INLINE __m512 sigmoid(__m512 x) {
  const __m512 one = all(1);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp2(_mm512_mul_ps(x, all(-vec::kLog2e)))));
}

BF16_TARGET BALORA_INLINE void forward_lanes(const bf16* gate, const bf16* up, bf16* y,
                                             __mmask16 there) {
  const __m512 g = load_bf16(gate, there);
  store_bf16(y, there, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), load_bf16(up, there)));
}

BF16_TARGET BALORA_INLINE void backward_lanes(const bf16* dy, const bf16* gate, const bf16* up,
                                              bf16* dgate, bf16* dup, __mmask16 there) {
  const __m512 d = load_bf16(dy, there), g = load_bf16(gate, there), u = load_bf16(up, there);
  const __m512 s = sigmoid(g), value = _mm512_mul_ps(g, s);
  const __m512 slope = _mm512_fmadd_ps(value, _mm512_sub_ps(all(1), s), s);  // s + x s (1 - s)
  store_bf16(dgate, there, _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
  store_bf16(dup, there, _mm512_mul_ps(d, value));
}

BF16_TARGET void forward_row(const bf16* gate, const bf16* up, bf16* y, int64_t width) {
  int64_t f = 0;
  for (; f + 16 <= width; f += 16) forward_lanes(gate + f, up + f, y + f, 0xffff);
  if (f < width) forward_lanes(gate + f, up + f, y + f, first16(width - f));
}

BF16_TARGET void backward_row(const bf16* dy, const bf16* gate, const bf16* up, bf16* dgate,
                              bf16* dup, int64_t width) {
  int64_t f = 0;
  for (; f + 16 <= width; f += 16) {
    backward_lanes(dy + f, gate + f, up + f, dgate + f, dup + f, 0xffff);
  }
  if (f < width) {
    backward_lanes(dy + f, gate + f, up + f, dgate + f, dup + f, first16(width - f));
  }
}

}  // namespace

void swiglu_forward(Context* ctx, const balora_gated_forward& o) {
  const Rows<bf16> gate(o.gate), up(o.up), y(o.y);
  share_out(ctx, o.gate->shape[0], kGatedGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) forward_row(gate[n], up[n], y[n], o.gate->shape[1]);
  });
}

void swiglu_backward(Context* ctx, const balora_gated_backward& o) {
  const Rows<bf16> dy(o.dy), gate(o.gate), up(o.up), dgate(o.dgate), dup(o.dup);
  share_out(ctx, o.gate->shape[0], kGatedGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      backward_row(dy[n], gate[n], up[n], dgate[n], dup[n], o.gate->shape[1]);
    }
  });
}

}  // namespace balora::x86
