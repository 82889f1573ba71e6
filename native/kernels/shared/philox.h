// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128
// random bits from a 128-bit counter and a 64-bit key, without state, so an element's value depends
// on the seed and its index only, whatever the thread count or the device. Known answers of the
// reference implementation are in philox_test.cc.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/shared/host_device.h"

namespace balora {

struct PhiloxBlock {
  uint32_t word[4];

  BALORA_HOST_DEVICE uint32_t operator[](size_t i) const { return word[i]; }
  bool operator==(const PhiloxBlock&) const = default;
};

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;
constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;

// One round on the four words of a counter; the key steps after it.
BALORA_HOST_DEVICE void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3,
                                     uint32_t k0, uint32_t k1) {
  const uint64_t a = uint64_t{kPhiloxFactor0} * c0, b = uint64_t{kPhiloxFactor1} * c2;
  c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
  c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
  c1 = static_cast<uint32_t>(b);
  c3 = static_cast<uint32_t>(a);
}

// counter = (index, stream) as four little-endian words; key = seed as two.
BALORA_HOST_DEVICE PhiloxBlock philox(uint64_t seed, uint64_t index, uint64_t stream = 0) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  BALORA_UNROLL
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c0, c1, c2, c3, k0, k1);
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1) with the upper `bits` bits of a word: at most as many as the type of the result
// holds there, so that rounding cannot reach 1.
BALORA_HOST_DEVICE double philox_uniform(uint32_t word, int bits) {
  return (word >> (32 - bits)) * (1.0 / (uint32_t{1} << bits));
}

// Bits of a uniform in a result with a significand of 8 (bf16), 11 (f16) or 24 bits (f32).
constexpr int kUniformBitsBf16 = 8, kUniformBitsF16 = 11, kUniformBitsF32 = 24;

// Uniform in [0, 1) with 53 random bits.
BALORA_HOST_DEVICE double philox_double(uint32_t high, uint32_t low) {
  return static_cast<double>(((uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
}

struct NormalPair {
  double first, second;
};

// Two independent standard normals (Box and Muller) from one block.
BALORA_HOST_DEVICE NormalPair philox_normals(uint64_t seed, uint64_t index, uint64_t stream = 0) {
  constexpr double kTwoPi = 6.28318530717958647692;
  const PhiloxBlock block = philox(seed, index, stream);
  const double radius = std::sqrt(-2 * std::log(1 - philox_double(block[0], block[1])));
  const double angle = kTwoPi * philox_double(block[2], block[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

// Dropout keeps an element where its word, without the lowest 8 bits, reaches this.
inline uint32_t dropout_threshold(double p) {
  return static_cast<uint32_t>(std::llround(p * 0x1p24));
}
BALORA_HOST_DEVICE bool dropout_keeps(uint32_t word, uint32_t threshold) {
  return (word >> 8) >= threshold;
}
// The factor of what dropout keeps.
inline double dropout_scale(double p) {
  return p < 1 ? 1 / (1 - p) : 0.0;
}

}  // namespace balora
