// Operands of the tile products in and out of their packed orders, the online softmax and the
// gradient of the scores, column by column; and the list of cores.
#include "kernels/cpu/attention/attention_tiles.h"

#include <cmath>

#include "kernels/cpu/attention/attention_softmax.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/cpu/runtime/wide.h"
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

template <typename A, int kBytes>
BALORA_INLINE void gradient_rows(const GradTile<A>& t) {
  using V = Vector<A, kBytes>;
  const int64_t ld = t.padded_keys;
  for (int64_t row = 0; row < t.queries; ++row) {
    const Columns seen = seen_in_row(t, row);
    A *p = t.p + row * ld, *ds = t.ds + row * ld;
    const int64_t first = block_first(seen), last = std::max(first, block_last(seen));
    for (int64_t j = first; j < last; j += kLanesOf<V>) {
      V s, dp;
      load_wide(t.scores + row * ld + j, s);
      load_wide(t.dp + row * ld + j, dp);
      exp_unit<V>(s - t.lse[row], s);
      dp = s * (dp - t.delta[row]);
      store_wide(s, p + j);
      store_wide(dp, ds + j);
    }
    const Columns inner = seen.first < seen.last ? seen : Columns{0, 0};
    fill_outside(p, inner, 0, ld, A(0));
    fill_outside(ds, inner, 0, ld, A(0));
  }
  std::fill(t.p + t.queries * ld, t.p + t.padded_queries * ld, A(0));
  std::fill(t.ds + t.queries * ld, t.ds + t.padded_queries * ld, A(0));
}

template <typename A, int kBytes>
BALORA_INLINE void softmax_tile(const SoftmaxTile<A>& t) {
  using V = Vector<A, kBytes>;
  softmax_columns<V, A, &sum_exponentials<V, A>>(t);
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

// Blocks of as many rows as a vector has lanes are transposed in registers, where a compiler would
// gather elements.
template <typename T, typename E, int kBytes>
BALORA_INLINE void pack_blocks(const Source<T>& s, E* out, int64_t r, int64_t d) {
  using V = Vector<E, kBytes>;
  constexpr int64_t n = kLanesOf<V>;
  for (int64_t i = 0; i < r; i += n) {
    for (int64_t c = 0; c < d; c += n) {
      T padded[n * n];
      const T* from = s.data + i * s.stride + c;
      int64_t stride = s.stride;
      if (i + n > s.rows || c + n > s.size) {
        std::fill_n(padded, n * n, T{});
        const int64_t rows = std::min(s.rows - i, n), size = std::min(s.size - c, n);
        for (int64_t l = 0; l < rows; ++l) {
          for (int64_t e = 0; e < size; ++e) padded[l * n + e] = from[l * stride + e];
        }
        from = padded, stride = n;
      }
      V rows[n];
#pragma GCC unroll 16
      for (int64_t l = 0; l < n; ++l, from += stride) load_wide(from, rows[l]);
      transpose_rows(rows);
      E* to = out + c * r + i;
#pragma GCC unroll 16
      for (int64_t l = 0; l < n; ++l, to += r) store_wide(rows[l], to);
    }
  }
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

template <typename T, typename E>
void pack_columns(const Source<T>& s, E* out, int64_t r, int64_t d) {
  at_width<&pack_blocks<T, E, 16>, &pack_blocks<T, E, 32>, &pack_blocks<T, E, 64>>(s, out, r, d);
}

// Loops that the compiler finds instructions for, of tiles that are not of bf16.
template <typename T, typename E>
constexpr AttentionCore<T, E> kAnyCore = {
    .rows_left = [](const Source<T>& s, E* out, int64_t r,
                    int64_t d) { at_level<&pack_rows<T, E>>(s, out, r, d); },
    .rows_right = [](const Source<T>& s, E* out, int64_t r,
                     int64_t d) { at_level<&pack_rows<T, E>>(s, out, r, d); },
    .columns_left = pack_columns<T, E>,
    .columns_right = pack_columns<T, E>,
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
    .softmax =
        [](const SoftmaxTile<E>& tile) {
          at_width<&softmax_tile<E, 16>, &softmax_tile<E, 32>, &softmax_tile<E, 64>>(tile);
        },
    .gradient =
        [](const GradTile<E>& tile) {
          at_width<&gradient_rows<E, 16>, &gradient_rows<E, 32>, &gradient_rows<E, 64>>(tile);
        },
};

template <typename T, typename E>
using CoreOf = Core<const AttentionCore<T, E>*>;

constexpr CoreOf<bf16, bf16> kBf16[] = {
    BALORA_X86("amx", platform::kAmx, &x86::amx_core),
    BALORA_X86("avx512_bf16", platform::kBf16, &x86::avx512_bf16_core),
    {"none", 0, nullptr},
};

}  // namespace

template <typename T, typename E>
const CoreOf<T, E>& named_core_of() {
  if constexpr (std::is_same_v<E, bf16>) {
    static const CoreOf<T, E>& core = first_core(kBf16);
    return core;
  } else {
    static constexpr CoreOf<T, E> kAny = {"any", 0, &kAnyCore<T, E>};
    return kAny;
  }
}

#define CORE(T, E)                                    \
  template const CoreOf<T, E>& named_core_of<T, E>(); \
  template void softmax<T, E>(SoftmaxTile<E>);        \
  template void score_gradient<T, E>(GradTile<E>);
CORE(float, float)
CORE(f16, float)
CORE(double, double)
CORE(bf16, float)
CORE(bf16, bf16)
#undef CORE

}  // namespace balora::attention

namespace balora {
BALORA_IMPLEMENTATIONS(attention_core_bf16, attention::kBf16)
}  // namespace balora
