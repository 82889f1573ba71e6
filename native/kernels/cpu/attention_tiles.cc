#include "kernels/cpu/attention_tiles.h"

#include <cmath>

#include "kernels/cpu/vec_math.h"

namespace balora::attention {
namespace {

template <typename T, typename E>
BALORA_INLINE E convert(T value) {
  if constexpr (std::is_same_v<T, E>) {
    return value;
  } else {
    return store<E>(load(value));
  }
}

// Two rows interleaved: one 32-bit word holds a value of each.
BALORA_INLINE void interleave(const bf16* even, const bf16* odd, bf16* pairs, int64_t n) {
  typedef uint32_t __attribute__((may_alias)) Word;
  Word* words = reinterpret_cast<Word*>(pairs);
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    words[c] = even[c].bits | static_cast<uint32_t>(odd[c].bits) << 16;
  }
}

template <typename T, typename E>
BALORA_INLINE void pack_rows(const Source<T>& s, E* out, int64_t r, int64_t d) {
  for (int64_t i = 0; i < s.rows; ++i) {
    const T* row = s.data + i * s.stride;
#pragma omp simd
    for (int64_t c = 0; c < s.size; ++c) out[i * d + c] = convert<T, E>(row[c]);
    for (int64_t c = s.size; c < d; ++c) out[i * d + c] = E{};
  }
  std::fill(out + s.rows * d, out + r * d, E{});
}

template <typename T, typename E>
BALORA_INLINE void pack_columns(const Source<T>& s, E* out, int64_t r, int64_t d) {
  for (int64_t c = 0; c < s.size; ++c) {
    for (int64_t i = 0; i < s.rows; ++i) out[c * r + i] = convert<T, E>(s.data[i * s.stride + c]);
    for (int64_t i = s.rows; i < r; ++i) out[c * r + i] = E{};
  }
  std::fill(out + s.size * r, out + d * r, E{});
}

template <typename T, typename E>
BALORA_INLINE void pack_rows_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  if constexpr (std::is_same_v<E, bf16>) {
    for (int64_t i = 0; i < r; i += 2) {
      const T *even = s.data + i * s.stride, *odd = even + s.stride;
      const int64_t rows = s.rows - i;
      E* pairs = out + i * d;
      std::fill(pairs, pairs + 2 * d, E{});
      if (rows >= 2) {
        interleave(even, odd, pairs, s.size);
      } else if (rows == 1) {
        for (int64_t c = 0; c < s.size; ++c) pairs[2 * c] = even[c];
      }
    }
  } else {
    pack_rows<T, E>(s, out, r, d);
  }
}

template <typename T, typename E>
BALORA_INLINE void pack_columns_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  if constexpr (std::is_same_v<E, bf16>) {
    std::fill(out, out + r * d, E{});
    for (int64_t c = 0; c < s.size; ++c) {
      E* pairs = out + (c & ~int64_t{1}) * r + (c & 1);
      for (int64_t i = 0; i < s.rows; ++i) pairs[2 * i] = convert<T, E>(s.data[i * s.stride + c]);
    }
  } else {
    pack_columns<T, E>(s, out, r, d);
  }
}

// Columns [first, last) of the tile that row `query` (or, transposed, row `key`) has.
struct Columns {
  int64_t first, last;
};

BALORA_INLINE Columns clip(int64_t first, int64_t last, int64_t origin, int64_t count) {
  return {std::clamp<int64_t>(first - origin, 0, count),
          std::clamp<int64_t>(last - origin, 0, count)};
}

template <typename A>
BALORA_INLINE A capped(A score, A cap) {
  return cap * vtanh(score / cap);
}

template <typename E>
BALORA_INLINE void softmax_rows(const SoftmaxTile<E>& t) {
  using A = Acc<E>;
  const Geometry& g = t.geometry;
  const A scale = static_cast<A>(g.scale), cap = static_cast<A>(g.softcap);
  for (int64_t i = 0; i < t.queries; ++i) {
    const int64_t query = t.first_query + i;
    const Columns seen =
        clip(g.first_key(query), g.last_key(query, t.segment_rows), t.first_key, t.keys);
    A* s = t.scores + i * t.padded_keys;
    E* p = t.p + i * t.padded_keys;
    if (seen.first >= seen.last) {
      std::fill(p, p + t.padded_keys, E{});
      continue;
    }
    A highest = t.highest[i];
    if (cap != A(0)) {
#pragma omp simd
      for (int64_t j = seen.first; j < seen.last; ++j) s[j] = capped(s[j] * scale, cap);
    } else {
#pragma omp simd
      for (int64_t j = seen.first; j < seen.last; ++j) s[j] *= scale;
    }
#pragma omp simd reduction(max : highest)
    for (int64_t j = seen.first; j < seen.last; ++j) highest = std::max(highest, s[j]);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = seen.first; j < seen.last; ++j) {
      const A probability = vexp(s[j] - highest);
      sum += probability;
      p[j] = store<E>(probability);
    }
    std::fill(p, p + seen.first, E{});
    std::fill(p + seen.last, p + t.padded_keys, E{});
    const A fade =
        vexp(t.highest[i] - highest);  // 0 for the first tile, whose maximum was -infinity
    t.total[i] = t.total[i] * fade + sum;
    t.highest[i] = highest;
    if (fade == A(1)) continue;
    A* out = t.out + i * t.padded_size;
#pragma omp simd
    for (int64_t d = 0; d < t.padded_size; ++d) out[d] *= fade;
  }
  std::fill(t.p + t.queries * t.padded_keys, t.p + t.padded_queries * t.padded_keys, E{});
}

template <typename E>
BALORA_INLINE void gradient_rows(const GradTile<E>& t) {
  using A = Acc<E>;
  const Geometry& g = t.geometry;
  const A scale = static_cast<A>(g.scale), cap = static_cast<A>(g.softcap);
  for (int64_t j = 0; j < t.keys; ++j) {
    const int64_t key = t.first_key + j;
    const Columns seen =
        clip(g.first_query(key), g.last_query(key, t.segment_rows), t.first_query, t.queries);
    const A *s = t.scores + j * t.padded_queries, *dp = t.dp + j * t.padded_queries;
    E *p = t.p + j * t.padded_queries, *ds = t.ds + j * t.padded_queries;
    if (cap != A(0)) {
#pragma omp simd
      for (int64_t i = seen.first; i < seen.last; ++i) {
        const A score = capped(s[i] * scale, cap), ratio = score / cap;
        const A probability = vexp(score - t.lse[i]);
        p[i] = store<E>(probability);
        ds[i] = store<E>(probability * (dp[i] - t.delta[i]) * (A(1) - ratio * ratio) * scale);
      }
    } else {
#pragma omp simd
      for (int64_t i = seen.first; i < seen.last; ++i) {
        const A probability = vexp(s[i] * scale - t.lse[i]);
        p[i] = store<E>(probability);
        ds[i] = store<E>(probability * (dp[i] - t.delta[i]) * scale);
      }
    }
    const int64_t last = std::max(seen.first, seen.last);
    std::fill(p, p + seen.first, E{});
    std::fill(p + last, p + t.padded_queries, E{});
    std::fill(ds, ds + seen.first, E{});
    std::fill(ds + last, ds + t.padded_queries, E{});
  }
  const int64_t from = t.keys * t.padded_queries, to = t.padded_keys * t.padded_queries;
  std::fill(t.p + from, t.p + to, E{});
  std::fill(t.ds + from, t.ds + to, E{});
  if constexpr (std::is_same_v<E, bf16>) {
    for (int64_t j = 0; j < t.padded_keys; j += 2) {
      const bf16* even = t.ds + j * t.padded_queries;
      interleave(even, even + t.padded_queries, t.ds_right + j * t.padded_queries,
                 t.padded_queries);
    }
  }
}

// target_clones cannot mark a template, so each pair of types gets plain functions of its own.
#define PACKING(T, E)                                                               \
  BALORA_SIMD void left(const Source<T>& s, E* out, int64_t r, int64_t d) {         \
    pack_rows<T, E>(s, out, r, d);                                                  \
  }                                                                                 \
  BALORA_SIMD void right(const Source<T>& s, E* out, int64_t r, int64_t d) {        \
    pack_rows_right<T, E>(s, out, r, d);                                            \
  }                                                                                 \
  BALORA_SIMD void turned_left(const Source<T>& s, E* out, int64_t r, int64_t d) {  \
    pack_columns<T, E>(s, out, r, d);                                               \
  }                                                                                 \
  BALORA_SIMD void turned_right(const Source<T>& s, E* out, int64_t r, int64_t d) { \
    pack_columns_right<T, E>(s, out, r, d);                                         \
  }
#define ROWS(E)                                       \
  BALORA_SIMD void softmax(const SoftmaxTile<E>& t) { \
    softmax_rows<E>(t);                               \
  }                                                   \
  BALORA_SIMD void gradient(const GradTile<E>& t) {   \
    gradient_rows<E>(t);                              \
  }
PACKING(float, float)
PACKING(bf16, bf16)
PACKING(bf16, float)
PACKING(f16, float)
PACKING(double, double)
ROWS(float)
ROWS(bf16)
ROWS(double)
#undef PACKING
#undef ROWS

}  // namespace

template <typename T, typename E>
void Packing<T, E>::rows_left(const Source<T>& s, E* out, int64_t r, int64_t d) {
  left(s, out, r, d);
}
template <typename T, typename E>
void Packing<T, E>::rows_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  right(s, out, r, d);
}
template <typename T, typename E>
void Packing<T, E>::columns_left(const Source<T>& s, E* out, int64_t r, int64_t d) {
  turned_left(s, out, r, d);
}
template <typename T, typename E>
void Packing<T, E>::columns_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  turned_right(s, out, r, d);
}
template <typename E>
void Softmax<E>::run(const SoftmaxTile<E>& tile) {
  softmax(tile);
}
template <typename E>
void ScoreGradient<E>::run(const GradTile<E>& tile) {
  gradient(tile);
}

template struct Packing<float, float>;
template struct Packing<bf16, bf16>;
template struct Packing<bf16, float>;
template struct Packing<f16, float>;
template struct Packing<double, double>;
template struct Softmax<float>;
template struct Softmax<bf16>;
template struct Softmax<double>;
template struct ScoreGradient<float>;
template struct ScoreGradient<bf16>;
template struct ScoreGradient<double>;

}  // namespace balora::attention
