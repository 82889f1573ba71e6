// Philox 4x32-10 (Salmon et al., SC 2011) for kernels: the words of kernels/cpu/random/philox.h,
// bit for bit. 128 random bits from a counter (index, stream) and a key (seed), without state, so
// an element's value depends on the seed and its index only, whatever the grid.
#pragma once
#include "runtime/common.cuh"

namespace balora::cuda {

struct PhiloxBlock {
  uint32_t word[4];
};

__device__ inline PhiloxBlock philox(uint64_t seed, uint64_t index, uint64_t stream) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  BALORA_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1) with 53 random bits.
__device__ inline double philox_double(uint32_t high, uint32_t low) {
  return static_cast<double>(((uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
}

// mean + deviation * z in two roundings, as the CPU's: a fused multiply-add would give other bits.
__device__ inline double affine(double offset, double factor, double value) {
  return __dadd_rn(offset, __dmul_rn(factor, value));
}

}  // namespace balora::cuda
