#include "kernels/cpu/elementwise/gated_bf16.h"

#include "kernels/cpu/runtime/lanes.h"
#include "tensor/errors.h"

namespace balora {

#ifdef BALORA_TILES
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

}  // namespace

BF16_TARGET void swiglu_row_bf16(const bf16* gate, const bf16* up, bf16* y, int64_t width) {
  int64_t f = 0;
  for (; f + 16 <= width; f += 16) forward_lanes(gate + f, up + f, y + f, 0xffff);
  if (f < width) forward_lanes(gate + f, up + f, y + f, first16(width - f));
}

BF16_TARGET void swiglu_backward_row_bf16(const bf16* dy, const bf16* gate, const bf16* up,
                                          bf16* dgate, bf16* dup, int64_t width) {
  int64_t f = 0;
  for (; f + 16 <= width; f += 16) {
    backward_lanes(dy + f, gate + f, up + f, dgate + f, dup + f, 0xffff);
  }
  if (f < width) {
    backward_lanes(dy + f, gate + f, up + f, dgate + f, dup + f, first16(width - f));
  }
}

#else

void swiglu_row_bf16(const bf16*, const bf16*, bf16*, int64_t) {
  throw UnsupportedError("this build has no AVX512-BF16 kernels");
}
void swiglu_backward_row_bf16(const bf16*, const bf16*, const bf16*, bf16*, bf16*, int64_t) {
  throw UnsupportedError("this build has no AVX512-BF16 kernels");
}

#endif

}  // namespace balora
