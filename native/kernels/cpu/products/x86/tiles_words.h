// Words of two bf16, the elements (k, k+1) of a column, made of vectors of f32.
#pragma once
#include <array>

#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/x86/lanes.h"

namespace balora::tiles {

// Rounded, `even` in the lower halves and `odd` in the upper ones.
BF16_TARGET BALORA_INLINE Words word_pairs(__m512 even, __m512 odd) {
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint16_t, 32> order{};
    for (uint16_t lane = 0; lane < 32; ++lane) {
      order[lane] = static_cast<uint16_t>(lane / 2 + (lane & 1) * 16);
    }
    return order;
  }();
  const __m512i order = _mm512_load_si512(kOrder.data());
  return (Words)_mm512_permutexvar_epi16(order, lanes::rounded(even, odd));
}

}  // namespace balora::tiles
