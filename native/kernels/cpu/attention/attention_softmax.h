// The online softmax of a tile, by blocks of queries, the lanes of a vector V, against the tile's
// keys. Sums run down the columns, so nothing is added across lanes. E is the tiles' type. Loops
// that choose between lanes go by element: GCC 12 takes comparisons of vectors apart.
#pragma once
#include <cmath>
#include <limits>

#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/cpu/runtime/wide.h"

namespace balora::attention {

// e^x for x at most a little above 0, as softmax needs it; 0 below -87. Within 3 ulp near 0, where
// it is exact; without fused multiply-add the rounded product makes the error grow with the
// distance, to 1e-6 of a result of e^-20. It is 2^n times a polynomial of the rest, in half of the
// instructions of vexp.
template <typename V>
BALORA_INLINE void exp_unit(const V& x, V& to) {
  if constexpr (std::is_same_v<LaneOf<V>, double>) {
    for (int64_t l = 0; l < kLanesOf<V>; ++l) to[l] = std::exp(x[l]);
  } else {
    using Words = Vector<uint32_t, sizeof(V)>;
    const V shifted = x * vec::kLog2e + vec::kRound, n = shifted - vec::kRound;
    const V r = x * vec::kLog2e - n;
    V p = r * 1.32647273e-3f + 9.67151299e-3f;
    p = p * r + 5.55073358e-2f;
    p = p * r + 0.240222424f;
    p = p * r + 0.693147004f;
    p = p * r + 1.0f;
    const V power = (V)(((Words)shifted << 23) + 0x3f800000u);
    to = x < -87.0f ? V{} : p * power;
  }
}

// Probabilities of the keys [first, last), both even, that no query of the block sees. Those of
// bf16 lie in pairs of keys.
template <typename V, typename E>
BALORA_INLINE void zero_keys(const SoftmaxTile<E>& t, int64_t column, int64_t first, int64_t last) {
  constexpr int64_t kStep = std::is_same_v<E, bf16> ? 2 : 1;
  for (int64_t j = first; j < last; j += kStep) {
    std::fill_n(t.p + j * t.padded_queries + kStep * column, kStep * kLanesOf<V>, E{});
  }
}

// Scores that not every query of the block sees become -infinity for those that do not.
template <typename V, typename E>
BALORA_INLINE void mask_block(const SoftmaxTile<E>& t, int64_t column, const BlockKeys& keys) {
  for (int64_t j = keys.first; j < keys.last; ++j) {
    if (j == keys.all_first) j = keys.all_last;
    if (j >= keys.last) break;
    Acc<E>* s = t.scores + j * t.padded_queries + column;
    const KeyRow seen = key_row(t, j);
    const auto first = static_cast<int32_t>(seen.first - column);
    const auto last = static_cast<int32_t>(seen.last - column);
#pragma omp simd
    for (int32_t l = 0; l < kLanesOf<V>; ++l) {
      s[l] = l >= first && l < last ? s[l] : -std::numeric_limits<Acc<E>>::infinity();
    }
  }
}

template <typename V, typename A>
BALORA_INLINE void raise_to(const A* scores, V& most) {
  V values;
  load_wide(scores, values);
  most = values > most ? values : most;
}

// The maxima of the block's scores, four of the keys at a time: one alone would wait for itself.
template <typename V, typename A>
BALORA_INLINE void block_maxima(const A* s, int64_t ld, const BlockKeys& keys, V& to) {
  V top[4];
  for (V& lane : top) lane = V{} - std::numeric_limits<A>::infinity();
  int64_t j = keys.first;
  for (; j + 4 <= keys.last; j += 4) {
#pragma GCC unroll 4
    for (int64_t u = 0; u < 4; ++u) raise_to(s + (j + u) * ld, top[u]);
  }
  for (; j < keys.last; ++j) raise_to(s + j * ld, top[0]);
  top[0] = top[2] > top[0] ? top[2] : top[0];
  top[1] = top[3] > top[1] ? top[3] : top[1];
  to = top[1] > top[0] ? top[1] : top[0];
}

// p = e^(s * scale - highest) of the block; sum gets the sums over the keys, those of even and odd
// ones apart for the same reason.
template <typename V, typename A>
BALORA_INLINE void sum_exponentials(const SoftmaxTile<A>& t, int64_t column, const BlockKeys& keys,
                                    const V& highest, V& sum) {
  const A scale = static_cast<A>(t.geometry.scale);
  const int64_t ld = t.padded_queries;
  const A* s = t.scores + column + keys.first * ld;
  A* p = t.p + column + keys.first * ld;
  V sums[2] = {};
  for (int64_t j = keys.first; j < keys.last; j += 2) {
#pragma GCC unroll 2
    for (V& sum_of_keys : sums) {
      V value;
      load_wide(s, value);
      exp_unit<V>(value * scale - highest, value);
      store_wide(value, p);
      sum_of_keys += value;
      s += ld, p += ld;
    }
  }
  sum = sums[0] + sums[1];
}

// Brings the maxima to those here where they are passed by more than the slack. `highest` is what
// exponents are taken from, `steps` the logarithms of what was summed so far is multiplied with;
// returns whether there is anything to multiply.
template <typename E, int64_t kCount>
BALORA_INLINE bool raise_maxima(const Acc<E>* here, Acc<E> scale, Acc<E>* maxima, Acc<E>* highest,
                                Acc<E>* steps) {
  using A = Acc<E>;
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  int rescaled = 0;
#pragma omp simd reduction(| : rescaled)
  for (int64_t l = 0; l < kCount; ++l) {
    const A before = maxima[l], scaled = here[l] * scale;
    const bool raised = scaled > before + A(kSlack<E>);
    const A both = raised ? scaled : before;
    maxima[l] = both;
    // Where nothing was seen yet, 0 instead of -infinity: differences are -infinity and not NaN.
    highest[l] = both == kNone ? A(0) : both;
    steps[l] = raised ? before - both : A(0);
    rescaled |= raised & (before != kNone);  // before the first key that is seen, the sums are 0
  }
  return rescaled != 0;
}

template <typename V, typename E, auto kSumExponentials>
BALORA_INLINE void softmax_block(const SoftmaxTile<E>& t, int64_t column) {
  using A = Acc<E>;
  const int64_t ld = t.padded_queries;
  const BlockKeys keys = keys_of_block(t, column, kLanesOf<V>);
  mask_block<V>(t, column, keys);
  V here, highest, total, sum;
  block_maxima(t.scores + column, ld, keys, here);
  A maxima[kLanesOf<V>], from[kLanesOf<V>], steps[kLanesOf<V>];
  store_wide(here, maxima);
  const bool rescaled = raise_maxima<E, kLanesOf<V>>(maxima, static_cast<A>(t.geometry.scale),
                                                     t.highest + column, from, steps);
  load_wide(from, highest);
  zero_keys<V>(t, column, 0, keys.first);
  kSumExponentials(t, column, keys, highest, sum);
  zero_keys<V>(t, column, keys.last, t.padded_keys);
  load_wide(t.total + column, total);
  if (rescaled) {
    V factors;
    load_wide(steps, factors);
    exp_unit<V>(factors, factors);
    total *= factors;
    A* out = t.out + column;
    for (int64_t d = 0; d < t.padded_size; ++d, out += ld) {
      V values;
      load_wide(out, values);
      values *= factors;
      store_wide(values, out);
    }
  }
  total += sum;
  store_wide(total, t.total + column);
}

template <typename V, typename E, auto kSumExponentials>
BALORA_INLINE void softmax_columns(const SoftmaxTile<E>& t) {
  for (int64_t column = 0; column < t.padded_queries; column += kLanesOf<V>) {
    if (column < t.block.queries) {
      softmax_block<V, E, kSumExponentials>(t, column);
    } else {
      zero_keys<V>(t, column, 0, t.padded_keys);
    }
  }
}

}  // namespace balora::attention
