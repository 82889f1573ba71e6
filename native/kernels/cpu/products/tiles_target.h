// The compiler targets of the tile kernels, and AMX's tile configuration.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels/cpu/runtime/inline.h"
#include "tensor/dtype.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define BALORA_TILES 1
#include <immintrin.h>

// AVX-512, the same with AVX512-BF16, and that with AMX. A function of each may inline those of the
// ones before.
#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,bmi2")))
#define BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,bmi2")))
#define AMX_TARGET \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,bmi2")))

namespace balora {

// The layout that LDTILECFG reads: palette 1, eight tiles of 16 rows x 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace balora
#ifdef BALORA_EMULATED_AMX
#include "kernels/cpu/products/amx_emulated.h"
#endif

namespace balora {

// A static object, since _tile_loadconfig of GCC 12.2 declares only the first 8 bytes as read: the
// others of a local object would not be written.
AMX_TARGET inline void configure_tiles() {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
}

// Two bf16 that lie side by side, 16 times. The optimizer of clang 16 never ends on a cast of a
// shuffle to bf16; the empty statement keeps the shuffle from it.
BF16_TARGET BALORA_INLINE __m512bh broadcast_pair(const bf16* pair) {
  int32_t bits;
  std::memcpy(&bits, pair, sizeof bits);
  __m512i all = _mm512_set1_epi32(bits);
#if defined(__clang__) && __clang_major__ < 19
  asm("" : "+v"(all));
#endif
  return (__m512bh)all;
}

}  // namespace balora
#endif
