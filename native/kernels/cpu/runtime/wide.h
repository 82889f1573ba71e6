// Vectors of 64 bytes of accumulators (16 f32, 8 f64), for loops whose sums must stay in registers:
// the compiler maps them to what the instructions of their level have. A sum that is kept in one
// has the same order of additions whatever stands beside it. They are passed by reference, since
// how a function takes one by value depends on the instructions.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels/cpu/runtime/dispatch.h"

namespace balora {

template <typename A>
struct WideOf {
  typedef A Type __attribute__((vector_size(64)));
};
template <typename A>
using Wide = typename WideOf<A>::Type;
template <typename A>
constexpr int64_t kWide = 64 / static_cast<int64_t>(sizeof(A));

typedef uint16_t WideBits16 __attribute__((vector_size(32)));
typedef uint32_t WideBits32 __attribute__((vector_size(64)));

// kWide values from memory of any alignment, widened.
template <typename T>
BALORA_INLINE void load_wide(const T* from, Wide<Acc<T>>& to) {
  if constexpr (std::is_same_v<T, bf16>) {
    WideBits16 narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    const WideBits32 bits = __builtin_convertvector(narrow, WideBits32) << 16;
    std::memcpy(&to, &bits, sizeof to);
  } else if constexpr (std::is_same_v<T, f16>) {
    float lanes[kWide<float>];
    for (int64_t l = 0; l < kWide<float>; ++l) lanes[l] = load(from[l]);
    std::memcpy(&to, lanes, sizeof to);
  } else {
    std::memcpy(&to, from, sizeof to);
  }
}

template <typename A>
BALORA_INLINE void store_wide(const Wide<A>& from, A* to) {
  std::memcpy(to, &from, sizeof from);
}

// The sum of the lanes, by halves.
template <typename A>
BALORA_INLINE A sum_lanes(const Wide<A>& values) {
  A lanes[kWide<A>];
  std::memcpy(lanes, &values, sizeof lanes);
  for (int64_t half = kWide<A> / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

}  // namespace balora
