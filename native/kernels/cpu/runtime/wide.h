// Vectors for loops whose sums must stay in registers, or whose lanes change places: the compiler
// maps them to what the instructions of their level have. Those of 64 bytes of accumulators (16
// f32, 8 f64) go everywhere, and a sum that is kept in one has the same order of additions whatever
// stands beside it. Lanes change places well in vectors of the level's own size alone (at_width).
// Vectors are passed by reference: how a function takes one by value depends on the instructions.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/runtime/dispatch.h"

namespace balora {

template <typename A, int kBytes>
struct VectorOf {
  typedef A Type __attribute__((vector_size(kBytes)));
};
template <typename A, int kBytes>
using Vector = typename VectorOf<A, kBytes>::Type;
template <typename V>
using LaneOf = std::remove_cvref_t<decltype(V{}[0])>;
template <typename V>
constexpr int64_t kLanesOf = sizeof(V) / sizeof(LaneOf<V>);

template <typename A>
using Wide = Vector<A, 64>;
template <typename A>
constexpr int64_t kWide = kLanesOf<Wide<A>>;

// A vector from memory of any alignment, widened.
template <typename T, typename V>
BALORA_INLINE void load_wide(const T* from, V& to) {
  if constexpr (std::is_same_v<T, bf16>) {
    Vector<uint16_t, sizeof(V) / 2> narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    const auto bits = __builtin_convertvector(narrow, Vector<uint32_t, sizeof(V)>) << 16;
    std::memcpy(&to, &bits, sizeof to);
  } else if constexpr (std::is_same_v<T, f16>) {
    float lanes[kLanesOf<V>];
    for (int64_t l = 0; l < kLanesOf<V>; ++l) lanes[l] = load(from[l]);
    std::memcpy(&to, lanes, sizeof to);
  } else {
    std::memcpy(&to, from, sizeof to);
  }
}

template <typename V, typename A>
BALORA_INLINE void store_wide(const V& from, A* to) {
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

// Rows i and i + kStep trade their off-diagonal runs of kStep lanes.
template <int kStep, typename V, int... kLane>
BALORA_INLINE void trade_lanes(V* rows, std::integer_sequence<int, kLane...> lanes) {
  constexpr int kCount = sizeof...(kLane);
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    if (i & kStep) continue;
    const V a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shufflevector(a, b, (kLane & kStep ? kCount + kLane - kStep : kLane)...);
    rows[i + kStep] =
        __builtin_shufflevector(a, b, (kLane & kStep ? kCount + kLane : kLane + kStep)...);
  }
  if constexpr (kStep > 1) trade_lanes<kStep / 2>(rows, lanes);
}

// The block of as many rows as a vector has lanes becomes its transpose.
template <typename V, size_t kCount>
BALORA_INLINE void transpose_rows(V (&rows)[kCount]) {
  static_assert(kCount == kLanesOf<V>);
  trade_lanes<kCount / 2>(rows, std::make_integer_sequence<int, kCount>());
}

}  // namespace balora
