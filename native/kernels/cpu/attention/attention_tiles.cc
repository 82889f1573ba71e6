// Operands of the tile products in and out of their packed orders, the online softmax and the
// gradient of the scores, column by column; and the list of cores.
#include "kernels/cpu/attention/attention_tiles.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/activations.h"

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

// Probabilities of the keys [first, last) that no query of the block sees.
template <typename A>
BALORA_INLINE void zero_keys(const SoftmaxTile<A>& t, int64_t column, int64_t first, int64_t last) {
  for (int64_t j = first; j < last; ++j) {
    std::fill_n(t.p + j * t.padded_queries + column, kLanes, A(0));
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
template <typename A>
BALORA_INLINE void sum_exponentials(const SoftmaxTile<A>& t, int64_t column, const BlockKeys& keys,
                                    A scale, const A* highest, A* sum) {
  const int64_t ld = t.padded_queries;
  const A* s = t.scores + column;
  A* p = t.p + column;
  for (int64_t j = keys.first; j < keys.last; j += 2) {
    A even[kLanes], odd[kLanes];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      even[l] = exp_unit(s[j * ld + l] * scale - highest[l]);
      odd[l] = exp_unit(s[(j + 1) * ld + l] * scale - highest[l]);
      sum[l] += even[l] + odd[l];
    }
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) p[j * ld + l] = even[l];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) p[(j + 1) * ld + l] = odd[l];
  }
}

// One block of queries (columns) against the tile's keys. Sums run down the columns, so nothing is
// added across lanes.
template <typename E>
BALORA_INLINE void softmax_block(const SoftmaxTile<E>& t, int64_t column) {
  using A = Acc<E>;
  const Geometry& g = t.geometry;
  const BlockKeys keys = keys_of_block(t, column);
  const A scale = static_cast<A>(g.scale);
  mask_block(t, column, keys);
  A highest[kLanes], before[kLanes], sum[kLanes] = {}, rescale[kLanes];
  raise_maxima(t, column, keys, scale, before, highest);
  sum_exponentials(t, column, keys, scale, highest, sum);
  zero_keys(t, column, 0, keys.first);
  zero_keys(t, column, keys.last, t.padded_keys);
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
      zero_keys(t, column, 0, t.padded_keys);
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

template <typename A>
BALORA_INLINE void gradient_rows(const GradTile<A>& t) {
  const A scale = static_cast<A>(t.geometry.scale);
  const int64_t ld = t.padded_keys;
  for (int64_t row = 0; row < t.queries; ++row) {
    const Columns seen = seen_in_row(t, row);
    const A *s = t.scores + row * ld, *dp = t.dp + row * ld;
    A *p = t.p + row * ld, *ds = t.ds + row * ld;
    const int64_t first = block_first(seen), last = std::max(first, block_last(seen));
    for (int64_t block = first; block < last; block += kLanes) {
#pragma omp simd
      for (int64_t i = block; i < block + kLanes; ++i) {
        const A probability = exp_unit(s[i] * scale - t.lse[row]);
        p[i] = probability;
        ds[i] = probability * (dp[i] - t.delta[row]) * scale;
      }
    }
    const Columns inner = seen.first < seen.last ? seen : Columns{0, 0};
    fill_outside(p, inner, 0, ld, A(0));
    fill_outside(ds, inner, 0, ld, A(0));
  }
  std::fill(t.p + t.queries * ld, t.p + t.padded_queries * ld, A(0));
  std::fill(t.ds + t.queries * ld, t.ds + t.padded_queries * ld, A(0));
}

// The scores of a tile as the softmax takes them without a scale and a soft-cap.
template <typename E>
BALORA_INLINE void cap_scores(const SoftmaxTile<E>& t) {
  using A = Acc<E>;
  const A scale = static_cast<A>(t.geometry.scale), cap = static_cast<A>(t.geometry.softcap);
  for (int64_t column = 0; column < t.queries; column += kLanes) {
    const BlockKeys keys = keys_of_block(t, column);
    for (int64_t j = keys.first; j < keys.last; ++j) {
      A* s = t.scores + j * t.padded_queries + column;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const A scaled = s[l] * scale;
        s[l] = cap == A(0) ? scaled : soft_capped<VectorMath>(scaled, cap);
      }
    }
  }
}

// The same for the gradient, whose dp gets what it lacks: delta, the slope of the soft-cap, scale.
template <typename E>
BALORA_INLINE void cap_gradients(const GradTile<E>& t) {
  using A = Acc<E>;
  const A scale = static_cast<A>(t.geometry.scale), cap = static_cast<A>(t.geometry.softcap);
  const int64_t rows = kQueriesByKeys<E> ? t.queries : t.keys;
  const int64_t ld = kQueriesByKeys<E> ? t.padded_keys : t.padded_queries;
  for (int64_t row = 0; row < rows; ++row) {
    const Columns seen = seen_in_row(t, row);
    A *s = t.scores + row * ld, *dp = t.dp + row * ld;
    for (int64_t block = block_first(seen); block < block_last(seen); block += kLanes) {
#pragma omp simd
      for (int64_t i = block; i < block + kLanes; ++i) {
        const A score = soft_capped<VectorMath>(s[i] * scale, cap), ratio = score / cap;
        s[i] = score;
        dp[i] = (dp[i] - t.delta[kQueriesByKeys<E> ? row : i]) * ((A(1) - ratio * ratio) * scale);
      }
    }
  }
}

// ---- operands -----------------------------------------------------------------------------------

template <typename T, typename E>
BALORA_INLINE E convert(T value) {
  if constexpr (std::is_same_v<T, E>) {
    return value;
  } else {
    return store<E>(load(value));
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

template <typename T, typename A>
BALORA_INLINE void unpack_rows(const A* sums, int64_t ld, T* out, int64_t stride, int64_t rows,
                               int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    const A* from = sums + i * ld;
    T* to = out + i * stride;
#pragma omp simd
    for (int64_t d = 0; d < size; ++d) to[d] = store<T>(from[d]);
  }
}

template <typename T, typename A>
BALORA_INLINE void unpack_columns(const A* sums, int64_t ld, const A* factors, T* out,
                                  int64_t stride, int64_t rows, int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    const A factor = factors ? factors[i] : A(1);
    T* to = out + i * stride;
#pragma omp simd
    for (int64_t d = 0; d < size; ++d) to[d] = store<T>(sums[d * ld + i] * factor);
  }
}

template <typename T, typename A>
BALORA_INLINE void dot_rows(const Source<T>& x, const Source<T>& y, A* out) {
  for (int64_t i = 0; i < x.rows; ++i) {
    const T *a = x.data + i * x.stride, *b = y.data + i * y.stride;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < x.size; ++d) sum += load(a[d]) * load(b[d]);
    out[i] = sum;
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

template <typename A>
void finish_softmax(int64_t queries, const A* highest, A* total, A* lse) {
  at_level<&finish_queries<A>>(queries, highest, total, lse);
}
template void finish_softmax(int64_t, const float*, float*, float*);
template void finish_softmax(int64_t, const double*, double*, double*);

template <typename T, typename E>
void softmax(SoftmaxTile<E> tile) {
  Geometry& g = tile.geometry;
  if (g.softcap != 0 || !(static_cast<Acc<E>>(g.scale) > 0)) {
    at_level<&cap_scores<E>>(tile);
    g.scale = 1, g.softcap = 0;
  }
  core_of<T, E>().softmax(tile);
}

template <typename T, typename E>
void score_gradient(GradTile<E> tile) {
  alignas(64) static constexpr Acc<E> kNone[kTile] = {};
  Geometry& g = tile.geometry;
  if (g.softcap != 0) {
    at_level<&cap_gradients<E>>(tile);
    g.scale = 1, g.softcap = 0, tile.delta = kNone;
  }
  core_of<T, E>().gradient(tile);
}

namespace {

// Loops that the compiler finds instructions for, of tiles that are not of bf16.
template <typename T, typename E>
constexpr AttentionCore<T, E> kAnyCore = {
    .rows_left = [](const Source<T>& s, E* out, int64_t r,
                    int64_t d) { at_level<&pack_rows<T, E>>(s, out, r, d); },
    .rows_right = [](const Source<T>& s, E* out, int64_t r,
                     int64_t d) { at_level<&pack_rows<T, E>>(s, out, r, d); },
    .columns_left = [](const Source<T>& s, E* out, int64_t r,
                       int64_t d) { at_level<&pack_columns<T, E>>(s, out, r, d); },
    .columns_right = [](const Source<T>& s, E* out, int64_t r,
                        int64_t d) { at_level<&pack_columns<T, E>>(s, out, r, d); },
    .unpack_rows =
        [](const E* sums, int64_t ld, T* out, int64_t stride, int64_t rows, int64_t size) {
          at_level<&unpack_rows<T, E>>(sums, ld, out, stride, rows, size);
        },
    .unpack_columns =
        [](const E* sums, int64_t ld, const E* factors, T* out, int64_t stride, int64_t rows,
           int64_t size) {
          at_level<&unpack_columns<T, E>>(sums, ld, factors, out, stride, rows, size);
        },
    .row_dots = [](const Source<T>& x, const Source<T>& y,
                   E* out) { at_level<&dot_rows<T, E>>(x, y, out); },
    .softmax = [](const SoftmaxTile<E>& tile) { at_level<&softmax_columns<E>>(tile); },
    .gradient = [](const GradTile<E>& tile) { at_level<&gradient_rows<E>>(tile); },
};

template <typename T, typename E>
using CoreOf = Core<const AttentionCore<T, E>*>;

constexpr CoreOf<float, float> kF32[] = {
    BALORA_X86("avx512", platform::kAvx512, &x86::avx512_core),
    {"any", 0, &kAnyCore<float, float>},
};
constexpr CoreOf<f16, float> kF16[] = {
    BALORA_X86("avx512", platform::kAvx512, &x86::avx512_f16_core),
    {"any", 0, &kAnyCore<f16, float>},
};
constexpr CoreOf<double, double> kF64[] = {
    {"any", 0, &kAnyCore<double, double>},
};
// Where products are not of bf16.
constexpr CoreOf<bf16, float> kWidened[] = {
    BALORA_X86("avx512", platform::kAvx512, &x86::avx512_widened_core),
    {"any", 0, &kAnyCore<bf16, float>},
};
constexpr CoreOf<bf16, bf16> kBf16[] = {
    BALORA_X86("amx", platform::kAmx, &x86::amx_core),
    BALORA_X86("avx512_bf16", platform::kBf16, &x86::avx512_bf16_core),
    {"none", 0, nullptr},
};

}  // namespace

#define CORE(T, E, list)                                \
  template <>                                           \
  const CoreOf<T, E>& named_core_of<T, E>() {           \
    static const CoreOf<T, E>& core = first_core(list); \
    return core;                                        \
  }                                                     \
  template void softmax<T, E>(SoftmaxTile<E>);          \
  template void score_gradient<T, E>(GradTile<E>);
CORE(float, float, kF32)
CORE(f16, float, kF16)
CORE(double, double, kF64)
CORE(bf16, float, kWidened)
CORE(bf16, bf16, kBf16)
#undef CORE

}  // namespace balora::attention

namespace balora {
BALORA_IMPLEMENTATIONS(attention_core_f32, attention::kF32)
BALORA_IMPLEMENTATIONS(attention_core_f16, attention::kF16)
BALORA_IMPLEMENTATIONS(attention_core_bf16, attention::kBf16)
BALORA_IMPLEMENTATIONS(attention_core_widened, attention::kWidened)
}  // namespace balora
