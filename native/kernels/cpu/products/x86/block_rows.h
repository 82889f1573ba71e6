// How many rows of A a block of sums in AVX-512 registers has: twelve, or eight.
#pragma once
#include <cstdint>

namespace balora {

// Rows that are a multiple of 4 KiB apart lie in one set of the first-level cache, which has eight
// ways on a Zen 4: twelve of them push each other out at every step. No sum depends on the count.
constexpr bool twelve_rows_fit(int64_t bytes_apart) {
  return bytes_apart % 4096 != 0;
}

}  // namespace balora
