// The online softmax and the gradient of the scores, column by column.
#include "kernels/cpu/attention/attention_tiles.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/attention/attention_avx512.h"
#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/attention/attention_bf16.h"
#include "kernels/cpu/attention/attention_blocks.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/activations.h"
#include "platform/cpu.h"

namespace balora::attention {
namespace {

// Row loops run over whole blocks of lanes: a constant trip count needs no remainder loop, and what
// a block holds outside [first, last) is masked before and after.
BALORA_INLINE int64_t block_first(Columns c) {
  return c.first / kLanes * kLanes;
}
BALORA_INLINE int64_t block_last(Columns c) {
  return (c.last + kLanes - 1) / kLanes * kLanes;
}

template <typename X>
BALORA_INLINE void fill_outside(X* row, Columns inner, int64_t first, int64_t last, X value) {
  for (int64_t j = first; j < inner.first; ++j) row[j] = value;
  for (int64_t j = inner.last; j < last; ++j) row[j] = value;
}

// e^x for x at most a little above 0, as softmax needs it; 0 below -87. 2 ulp.
BALORA_INLINE float exp_unit(float x) {
  const bool vanishes = x < -87.0f;
  x = vanishes ? -87.0f : x;
  const auto [shifted, p] = vec::exp_parts(x);
  const uint32_t scaled = std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23);
  return vanishes ? 0.0f : std::bit_cast<float>(scaled);
}
BALORA_INLINE double exp_unit(double x) {
  return std::exp(x);
}

// Applies scale and soft-cap to the scores in place.
template <typename A>
BALORA_INLINE void cap_scores(A* s, int64_t first, int64_t last, A scale, A cap) {
  for (int64_t j = first; j < last; j += kLanes) {
#pragma omp simd
    for (int64_t l = j; l < j + kLanes; ++l) {
      const A scaled = s[l] * scale;
      s[l] = cap == A(0) ? scaled : soft_capped<VectorMath>(scaled, cap);
    }
  }
}

// Rounding without to_bf16's care for NaN: a NaN here comes from bf16 operands or an invalid
// operation, has zeros in its low bits, and so survives.
BALORA_INLINE uint32_t rounded_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

template <typename E, typename A>
BALORA_INLINE E rounded(A value) {
  if constexpr (std::is_same_v<E, bf16>) {
    return {static_cast<uint16_t>(rounded_bits(value) >> 16)};
  } else {
    return value;
  }
}

// Two rows of lanes as one row pair of a B operand.
template <typename E, typename A>
BALORA_INLINE void store_pair(const A* even, const A* odd, E* out, int64_t ld) {
  if constexpr (std::is_same_v<E, bf16>) {
    typedef uint32_t __attribute__((may_alias)) Word;
    Word* words = reinterpret_cast<Word*>(out);
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      words[l] = rounded_bits(even[l]) >> 16 | (rounded_bits(odd[l]) & 0xffff0000u);
    }
  } else {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) out[l] = even[l];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) out[ld + l] = odd[l];
  }
}

// Probabilities of the keys [first, last), both even, that no query of the block sees.
template <typename E>
BALORA_INLINE void zero_pairs(const SoftmaxTile<E>& t, int64_t column, int64_t first,
                              int64_t last) {
  constexpr int64_t kStep = kPairWidth<E>;
  for (int64_t j = first; j < last; j += kStep) {
    E* p = t.p + j * t.padded_queries + column * kStep;
    std::fill(p, p + kLanes * kStep, E{});
  }
}

// Scores that not every query of the block sees become -infinity for those that do not.
template <typename E>
BALORA_INLINE void mask_block(const SoftmaxTile<E>& t, int64_t column, const BlockKeys& keys) {
  const Geometry& g = t.geometry;
  for (int64_t j = keys.first; j < keys.last; ++j) {
    if (j >= keys.all_first && j < keys.all_last) continue;
    Acc<E>* s = t.scores + j * t.padded_queries + column;
    const int64_t key = t.first_key + j;
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t query = t.first_query + column + l;
      const bool seen =
          j < t.keys && key >= g.first_key(query) && key < g.last_key(query, t.segment_rows);
      s[l] = seen ? s[l] : -std::numeric_limits<Acc<E>>::infinity();
    }
  }
}

// Brings what out has summed so far to a new maximum.
template <typename E>
BALORA_INLINE void rescale_columns(const SoftmaxTile<E>& t, int64_t column, const Acc<E>* rescale) {
  for (int64_t d = 0; d < t.padded_size; ++d) {
    Acc<E>* out = t.out + d * t.padded_queries + column;
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) out[l] *= rescale[l];
  }
}

// The maxima of the block's scores, before this tile and with it. Where nothing was seen yet
// `highest` is 0, so that differences are -infinity and not NaN.
template <typename E>
BALORA_INLINE void raise_maxima(const SoftmaxTile<E>& t, int64_t column, const BlockKeys& keys,
                                Acc<E> scale, Acc<E>* before, Acc<E>* highest) {
  using A = Acc<E>;
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  const int64_t ld = t.padded_queries;
  const A* s = t.scores + column;
  A here[kLanes];  // of its own, so that it stays in registers
  for (int64_t l = 0; l < kLanes; ++l) here[l] = kNone;
  for (int64_t j = keys.first; j < keys.last; ++j) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      here[l] = s[j * ld + l] > here[l] ? s[j * ld + l] : here[l];
    }
  }
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) {
    before[l] = t.highest[column + l];
    const A scaled = here[l] * scale, both = scaled > before[l] ? scaled : before[l];
    t.highest[column + l] = both;
    highest[l] = both == kNone ? A(0) : both;
  }
}

// p = e^(s * scale - highest) of the block, and its sums over the keys.
template <typename E>
BALORA_INLINE void sum_exponentials(const SoftmaxTile<E>& t, int64_t column, const BlockKeys& keys,
                                    Acc<E> scale, const Acc<E>* highest, Acc<E>* sum) {
  using A = Acc<E>;
  const int64_t ld = t.padded_queries;
  const A* s = t.scores + column;
  E* p = t.p + column * kPairWidth<E>;
#ifdef BALORA_TILES
  if constexpr (std::is_same_v<E, bf16>) {
    return lanes::exponentials(s, ld, keys.first, keys.last, scale, highest, p, sum);
  }
#endif
  for (int64_t j = keys.first; j < keys.last; j += 2) {
    A even[kLanes], odd[kLanes];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      even[l] = exp_unit(s[j * ld + l] * scale - highest[l]);
      odd[l] = exp_unit(s[(j + 1) * ld + l] * scale - highest[l]);
      sum[l] += even[l] + odd[l];
    }
    store_pair(even, odd, p + j * ld, ld);
  }
}

// One block of queries (columns) against the tile's keys. Sums run down the columns, so nothing is
// added across lanes.
template <typename E>
BALORA_INLINE void softmax_block(const SoftmaxTile<E>& t, int64_t column) {
  using A = Acc<E>;
  const Geometry& g = t.geometry;
  const BlockKeys keys = keys_of_block(t, column);
  const int64_t ld = t.padded_queries;
  A* s = t.scores + column;
  // The scale then goes into the exponent.
  const bool plain = g.template only_scales<A>();
  const A scale = plain ? static_cast<A>(g.scale) : A(1);
  if (!plain) {
    for (int64_t j = keys.first; j < keys.last; ++j) {
      cap_scores(s + j * ld, 0, kLanes, static_cast<A>(g.scale), static_cast<A>(g.softcap));
    }
  }
  mask_block(t, column, keys);
  A highest[kLanes], before[kLanes], sum[kLanes] = {}, rescale[kLanes];
  raise_maxima(t, column, keys, scale, before, highest);
  sum_exponentials(t, column, keys, scale, highest, sum);
  zero_pairs(t, column, 0, keys.first);
  zero_pairs(t, column, keys.last, t.padded_keys);
  int rescaled = 0;
#pragma omp simd reduction(| : rescaled)
  for (int64_t l = 0; l < kLanes; ++l) {
    rescale[l] =
        vexp(before[l] - highest[l]);  // 0 for the first tile, before which it was -infinity
    t.total[column + l] = t.total[column + l] * rescale[l] + sum[l];
    // Before the first tile that is seen, out is 0.
    rescaled |= (rescale[l] != A(1)) & (before[l] != -std::numeric_limits<A>::infinity());
  }
  if (rescaled) rescale_columns(t, column, rescale);
}

template <typename E>
BALORA_INLINE void softmax_columns(const SoftmaxTile<E>& t) {
  for (int64_t column = 0; column < t.padded_queries; column += kLanes) {
    if (column < t.queries) {
      softmax_block(t, column);
    } else {
      zero_pairs(t, column, 0, t.padded_keys);
    }
  }
}

template <typename A>
BALORA_INLINE void finish_queries(int64_t queries, const A* highest, A* total, A* lse) {
#pragma omp simd
  for (int64_t i = 0; i < queries; ++i) {
    lse[i] = highest[i] + vlog(total[i]);
    total[i] = A(1) / total[i];
  }
}

// The row of a tile of the backward, or what of it is seen.
template <typename E>
BALORA_INLINE Columns seen_in_row(const GradTile<E>& t, int64_t row) {
  if constexpr (kQueriesByKeys<E>) {
    return keys_of_query(t, row);
  } else {
    const Geometry& g = t.geometry;
    const int64_t key = t.first_key + row;
    return clip(g.first_query(key), g.last_query(key, t.segment_rows), t.first_query, t.queries);
  }
}

template <typename E>
BALORA_INLINE void gradient_rows(const GradTile<E>& t) {
  using A = Acc<E>;
  const A scale = static_cast<A>(t.geometry.scale), cap = static_cast<A>(t.geometry.softcap);
  const int64_t rows = kQueriesByKeys<E> ? t.queries : t.keys;
  const int64_t padded_rows = kQueriesByKeys<E> ? t.padded_queries : t.padded_keys;
  const int64_t ld = kQueriesByKeys<E> ? t.padded_keys : t.padded_queries;
  for (int64_t row = 0; row < rows; ++row) {
    const Columns seen = seen_in_row(t, row);
    const A *s = t.scores + row * ld, *dp = t.dp + row * ld;
    E *p = t.p + row * ld, *ds = t.ds + row * ld;
    const int64_t first = block_first(seen), last = std::max(first, block_last(seen));
    for (int64_t block = first; block < last; block += kLanes) {
      if (cap != A(0)) {
#pragma omp simd
        for (int64_t i = block; i < block + kLanes; ++i) {
          const int64_t query = kQueriesByKeys<E> ? row : i;
          const A score = soft_capped<VectorMath>(s[i] * scale, cap), ratio = score / cap;
          const A probability = exp_unit(score - t.lse[query]);
          const A slope = (A(1) - ratio * ratio) * scale;
          p[i] = rounded<E>(probability);
          ds[i] = rounded<E>(probability * (dp[i] - t.delta[query]) * slope);
        }
      } else {
#pragma omp simd
        for (int64_t i = block; i < block + kLanes; ++i) {
          const int64_t query = kQueriesByKeys<E> ? row : i;
          const A probability = exp_unit(s[i] * scale - t.lse[query]);
          p[i] = rounded<E>(probability);
          ds[i] = rounded<E>(probability * (dp[i] - t.delta[query]) * scale);
        }
      }
    }
    const Columns inner = seen.first < seen.last ? seen : Columns{0, 0};
    fill_outside(p, inner, 0, ld, E{});
    fill_outside(ds, inner, 0, ld, E{});
  }
  std::fill(t.p + rows * ld, t.p + padded_rows * ld, E{});
  std::fill(t.ds + rows * ld, t.ds + padded_rows * ld, E{});
  if constexpr (!kQueriesByKeys<E>) {
    for (int64_t j = 0; j < t.padded_keys; j += 2) {
      const bf16* even = t.ds + j * t.padded_queries;
      interleave(even, even + t.padded_queries, t.ds_right + j * t.padded_queries,
                 t.padded_queries);
    }
  }
}

template <typename E>
BALORA_INLINE void scale_values(E* values, int64_t count, E factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

}  // namespace

template <typename E>
void scale_packed(E* values, int64_t count, double factor) {
  at_level<&scale_values<E>>(values, count, static_cast<E>(factor));
}
template void scale_packed(float*, int64_t, double);
template void scale_packed(double*, int64_t, double);

template <typename E>
void Softmax<E>::run(const SoftmaxTile<E>& tile) {
#ifdef BALORA_TILES
  if constexpr (!std::is_same_v<E, double>) {
    if (platform::cpu().uses(platform::kAvx512) && tile.geometry.template only_scales<float>()) {
      return avx512::softmax(tile);
    }
  }
#endif
  at_level<&softmax_columns<E>>(tile);
}
template <typename E>
void Softmax<E>::finish(int64_t queries, const Acc<E>* highest, Acc<E>* total, Acc<E>* lse) {
  at_level<&finish_queries<Acc<E>>>(queries, highest, total, lse);
}
template <typename E>
void ScoreGradient<E>::run(const GradTile<E>& tile) {
#ifdef BALORA_TILES
  if constexpr (std::is_same_v<E, bf16>) {
    if (tile.geometry.softcap == 0) return lanes::score_gradient(tile);
  }
  if constexpr (std::is_same_v<E, float>) {
    if (platform::cpu().uses(platform::kAvx512) && tile.geometry.softcap == 0)
      return avx512::score_gradient(tile);
  }
#endif
  at_level<&gradient_rows<E>>(tile);
}

bool whole_gradient([[maybe_unused]] const WholePair& pair) {
#ifdef BALORA_TILES
  if (platform::cpu().uses(platform::kAvx512)) {
    avx512::whole_gradient(pair);
    return true;
  }
#endif
  return false;
}

template struct Softmax<float>;
template struct Softmax<bf16>;
template struct Softmax<double>;
template struct ScoreGradient<float>;
template struct ScoreGradient<bf16>;
template struct ScoreGradient<double>;

}  // namespace balora::attention
