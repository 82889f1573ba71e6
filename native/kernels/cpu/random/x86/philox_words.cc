// The random words of philox_words.h in AVX-512 instructions.
#include "kernels/cpu/random/philox_words.h"

#include "kernels/cpu/runtime/x86/targets.h"
#include "kernels/shared/philox.h"

namespace balora::x86 {
namespace {

AVX512_TARGET BALORA_INLINE __m512i all(uint64_t value) {
  return _mm512_set1_epi64(static_cast<int64_t>(value));
}
AVX512_TARGET BALORA_INLINE __m512i exclusive_or(__m512i x, __m512i y, __m512i z) {
  return _mm512_ternarylogic_epi64(x, y, z, 0x96);
}
// Lower halves of x and y, side by side.
AVX512_TARGET BALORA_INLINE __m512i pairs(__m512i x, __m512i y) {
  return _mm512_mask_mov_epi32(x, 0xaaaa, _mm512_slli_epi64(y, 32));
}

// Words of 16 blocks, as two times 8 that do not wait for each other. Each word of a counter has a
// lane of 64 bits, whose upper half nobody reads: products take the lower halves, so that nothing
// is widened or moved between them. The lanes 2 i are the blocks i and the lanes 2 i + 1 the blocks
// 4 + i, which come out in order.
AVX512_TARGET BALORA_INLINE void draw16(uint64_t seed, uint64_t stream, uint64_t first_block,
                                        uint32_t* words) {
  const __m512i lanes = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  __m512i c0[2], c1[2], c2[2], c3[2];
#pragma GCC unroll 2
  for (uint64_t i = 0; i < 2; ++i) {
    c0[i] = _mm512_add_epi64(all(first_block + 8 * i), lanes), c1[i] = _mm512_srli_epi64(c0[i], 32);
    c2[i] = all(stream), c3[i] = all(stream >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512i a = _mm512_mul_epu32(c0[i], all(kPhiloxFactor0));
      const __m512i b = _mm512_mul_epu32(c2[i], all(kPhiloxFactor1));
      c0[i] = exclusive_or(_mm512_srli_epi64(b, 32), c1[i], all(k0));
      c2[i] = exclusive_or(_mm512_srli_epi64(a, 32), c3[i], all(k1));
      c1[i] = b;
      c3[i] = a;
    }
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512i left = pairs(c0[i], c1[i]), right = pairs(c2[i], c3[i]);
    _mm512_store_si512(words + 32 * i, _mm512_unpacklo_epi64(left, right));
    _mm512_store_si512(words + 32 * i + 16, _mm512_unpackhi_epi64(left, right));
  }
}

}  // namespace

AVX512_TARGET void draw_words(uint64_t seed, uint64_t stream, uint64_t first_block, int blocks,
                              uint32_t* words) {
  for (int b = 0; b < blocks; b += 16) {
    draw16(seed, stream, first_block + static_cast<uint64_t>(b), words + 4 * b);
  }
}

}  // namespace balora::x86
