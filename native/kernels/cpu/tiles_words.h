// Words of two bf16, the elements (k, k+1) of a column, made of vectors of f32.
#pragma once
#include <array>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/tiles_target.h"
#include "kernels/cpu/transpose16.h"

#ifdef BALORA_TILES
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
  const auto rows = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  return (Words)_mm512_permutexvar_epi16(_mm512_load_si512(kOrder.data()), rows);
}

// What rounding to bf16 takes from a value.
BF16_TARGET BALORA_INLINE __m512 rounding_left(__m512 value) {
  const __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
  return _mm512_sub_ps(value, (__m512)_mm512_slli_epi32(wide, 16));
}

BALORA_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1);
}

}  // namespace balora::tiles
#endif
