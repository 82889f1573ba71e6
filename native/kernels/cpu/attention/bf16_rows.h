// Rows of bf16 in vectors, for what packs them: inlined into functions for AVX512-BF16.
#pragma once
#include <array>

#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/products/tiles_target.h"
#include "kernels/cpu/runtime/x86/lanes.h"

#ifdef BALORA_TILES
namespace balora::attention::lanes {

// 32 values of row i from column c on, zeros beyond the source.
BF16_TARGET BALORA_INLINE __m512i load_row(const Source<bf16>& s, int64_t i, int64_t c) {
  if (i >= s.rows) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi16(balora::lanes::first32(s.size - c), s.data + i * s.stride + c);
}

// Where _mm512_permutex2var_epi16 takes words from: the even row, then (+32) the odd row.
struct Interleaved {
  __m512i low, high;
};
BF16_TARGET BALORA_INLINE Interleaved interleaving() {
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint16_t, 64> order{};
    for (uint16_t lane = 0; lane < 64; ++lane) {
      order[lane] = static_cast<uint16_t>(lane / 2 + (lane & 1) * 32);
    }
    return order;
  }();
  return {_mm512_load_si512(kOrder.data()), _mm512_load_si512(kOrder.data() + 32)};
}
BF16_TARGET BALORA_INLINE Interleaved interleave(const Interleaved& order, __m512i even,
                                                 __m512i odd) {
  return {_mm512_permutex2var_epi16(even, order.low, odd),
          _mm512_permutex2var_epi16(even, order.high, odd)};
}

}  // namespace balora::attention::lanes
#endif
