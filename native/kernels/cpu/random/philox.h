// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128
// random bits from a 128-bit counter and a 64-bit key, without state, so an element's value depends
// on the seed and its index only, whatever the thread count or the device. Known answers of the
// reference implementation are in philox_test.cc.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "kernels/cpu/runtime/simd.h"

namespace balora {

using PhiloxBlock = std::array<uint32_t, 4>;

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;

// One round on the four words of a counter; the key steps after it.
BALORA_INLINE void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0,
                                uint32_t k1) {
  const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
  c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
  c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
  c1 = static_cast<uint32_t>(b);
  c3 = static_cast<uint32_t>(a);
}

// counter = (index, stream) as four little-endian words; key = seed as two.
BALORA_INLINE PhiloxBlock philox(uint64_t seed, uint64_t index, uint64_t stream = 0) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c0, c1, c2, c3, k0, k1);
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return {c0, c1, c2, c3};
}

// Uniform in [0, 1) with 53 random bits.
BALORA_INLINE double philox_double(uint32_t high, uint32_t low) {
  return static_cast<double>(((uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
}

struct NormalPair {
  double first, second;
};

// Two independent standard normals (Box and Muller) from one block.
inline NormalPair philox_normals(uint64_t seed, uint64_t index, uint64_t stream = 0) {
  const PhiloxBlock block = philox(seed, index, stream);
  const double radius = std::sqrt(-2 * std::log(1 - philox_double(block[0], block[1])));
  const double angle = 2 * std::numbers::pi * philox_double(block[2], block[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace balora
