// The compiler targets of functions in AVX-512 instructions and of the tile kernels.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/runtime/inline.h"
#include "tensor/dtype.h"

// AVX-512, the same with AVX512-BF16, and that with AMX. A function of each may inline those of the
// ones before.
#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,bmi2")))
#define BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,bmi2")))
#define AMX_TARGET \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,bmi2")))

namespace balora {

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
