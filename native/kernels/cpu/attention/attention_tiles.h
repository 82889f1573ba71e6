// A tile of attention, 64 queries against 64 keys: the loops over its rows and scores, which a core
// has for a processor, which scores exist, and products that leave out the others. T is the storage
// type of q, k and v, E the type the products run in (bf16 where the CPU multiplies it, else f32;
// f64 for f64), A = Acc<E> the type of scores and sums.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/cpu/attention/attention_plan.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora::attention {

// Rows of D values, `stride` elements apart, of which a tile has `rows`.
template <typename T>
struct Source {
  const T* data;
  int64_t stride;
  int64_t rows, size;
};

// Rows of the heads of an operand: (row, head) starts at data + row * stride + head * size.
// Undefined without a view.
template <typename T>
struct Heads {
  T* data = nullptr;
  int64_t stride = 0, size = 0;
  explicit Heads(const View* view) {
    if (!view) return;
    data = data_of<T>(view), stride = view->stride[0], size = view->shape[2];
  }
  T* at(int64_t row, int64_t head) const { return data + row * stride + head * size; }
  Source<T> source(int64_t row, int64_t head, int64_t rows) const {
    return {at(row, head), stride, rows, size};
  }
};

template <typename T>
void clear_rows(const Heads<T>& heads, int64_t count, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    std::fill(heads.at(row, 0), heads.at(row, count), T{});
  }
}

// Queries and keys of a segment: a tile's, or some of them.
struct Block {
  int64_t first_query, queries, first_key, keys;
};

// Forward, transposed: one key tile (rows) against one query tile (columns). scores (k,r) become
// probabilities in p, a B operand over keys, which may be in their place; highest, total (r) and
// the columns of out (d,r) are brought to the new maximum, which may lie below the highest score by
// a few units.
template <typename E>
struct SoftmaxTile {
  using A = Acc<E>;
  Geometry geometry;
  Block block;
  int64_t padded_queries, padded_keys, padded_size;
  A* scores;
  E* p;
  A* highest;
  A* total;
  A* out;
};
// A maximum that is passed by less than this stays: larger exponentials are as exact as those up to
// 1, and what was summed so far need not be multiplied again. Only the digits of a log-sum-exp
// become fewer, which tiles of bf16 notice least.
template <typename E>
constexpr float kSlack = std::is_same_v<E, bf16> ? 24.0f : 8.0f;

// Queries of f32 and f64 are multiplied with the scale as they are packed: a score then is the same
// number wherever it is compared, however large it is. Rounding those of bf16 once more would cost
// them digits.
template <typename E>
constexpr bool kScaledQueries = !std::is_same_v<E, bf16>;

// The form of the backward: whether its scores lie as queries by keys. Queries and dout then are
// packed once each, for A and B operands alike, and what the other operands take to turn is done
// once for a tile of keys. Products of bf16 multiply pairs of rows of p and ds, which are summed
// over queries, so these lie as keys by queries.
template <typename E>
constexpr bool kQueriesByKeys = !std::is_same_v<E, bf16>;

// Takes the scale to where it is multiplied before a tile's loops, for which it then is 1: to the
// queries, or to the scores of bf16 where those are `biased`, which has no scale.
template <typename E>
void take_scale(Geometry& g, bool biased) {
  if (kScaledQueries<E>) {
    g.query_scale = std::exchange(g.scale, 1.0);
  } else if (biased) {
    g.score_scale = std::exchange(g.scale, 1.0);
  }
}

// Backward: one key tile against one query tile.
//   p = exp(s - lse)
//   ds = p * (dp - delta) * scale
// (r,k) where kQueriesByKeys, in the place of scores and dp. Of bf16 (k,r), A operands over queries
// (p, ds) and a B operand over keys (ds_right). Where kScaledQueries, the geometry's scale is 1.
template <typename E>
struct GradTile {
  using A = Acc<E>;
  Geometry geometry;
  Block block;
  int64_t padded_queries, padded_keys;
  A* scores;
  A* dp;
  const A* lse;    // (r)
  const A* delta;  // (r)
  E* p;
  E* ds;
  E* ds_right;
  int64_t p_stride, right_stride;  // of bf16: between keys of p and ds, and of ds_right
  bool keeps_ds;                   // of bf16: dp becomes ds, not rounded
};

// Loops over tiles in the instructions of a processor.
//
// Those of rows and columns write a whole padded tile, (r, d) = (padded rows, padded size), zeros
// beyond the source:
//   rows_left        [r][d]  A operand of a product over d
//   rows_right       B operand of a product over rows: k = r, n = d
//   columns_left     [d][r]  A operand of a product over rows
//   columns_right    B operand of a product over d: k = d, n = r
template <typename T, typename E>
struct AttentionCore {
  using A = Acc<E>;
  using Pack = void (*)(const Source<T>& source, E* out, int64_t r, int64_t d);

  Pack rows_left, rows_right, columns_left, columns_right;
  // sums (rows, ld) stored as rows of T, `stride` elements apart
  void (*unpack_rows)(const A* sums, int64_t ld, T* out, int64_t stride, int64_t rows,
                      int64_t size);
  // sums (size, ld): row i of out is column i, times its factor (null: 1)
  void (*unpack_columns)(const A* sums, int64_t ld, const A* factors, T* out, int64_t stride,
                         int64_t rows, int64_t size);
  // out[i] = <x[i], y[i]>
  void (*row_dots)(const Source<T>& x, const Source<T>& y, A* out);
  // Both have no soft-cap, and the softmax a positive scale.
  void (*softmax)(const SoftmaxTile<E>& tile);
  void (*gradient)(const GradTile<E>& tile);
  // Queries of a tile that meet its keys together, and in the backward of bf16 also the keys: what
  // half a tile uses stays in L1 beside AMX's tiles.
  int64_t block = kTile;
  // Heads of a group whose sums of keys are made together in the backward of bf16, at most.
  int64_t heads = 1;
};
constexpr int64_t kMostHeads = 4;

// This processor's.
template <typename T, typename E>
const Core<const AttentionCore<T, E>*>& named_core_of();
template <typename T, typename E>
const AttentionCore<T, E>& core_of() {
  return *named_core_of<T, E>().run;
}

// Loops that the compiler finds instructions for, of tiles that are not of bf16.
template <typename T, typename E>
const AttentionCore<T, E>& any_core();

namespace x86 {
extern const AttentionCore<bf16, bf16> avx512_bf16_core, amx_core;
}  // namespace x86

// The core's loops after a pass over the tile, where there is a soft-cap, or a scale that cannot be
// left to exponents.
template <typename T, typename E>
void softmax(SoftmaxTile<E> tile);
template <typename T, typename E>
void score_gradient(GradTile<E> tile);

// The log-sum-exps of the queries, and the inverse of `total` in its place.
template <typename A>
void finish_softmax(int64_t queries, const A* highest, A* total, A* lse);

template <typename A>
void scale_values(A* values, int64_t count, double factor);

// Packed queries, or what lies across from them, with the queries' scale.
template <typename E>
void scale_packed(const Geometry& g, E* values, int64_t count) {
  if constexpr (kScaledQueries<E>) scale_values(values, count, g.query_scale);
}

// Memory for a tile that is computed from `sums` element by element: their own where the types are
// the same, which leaves more of the first-level cache to the products.
template <typename E>
E* in_place_or_taken(Arena& arena, Acc<E>* sums, int64_t count) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    return sums;
  } else {
    return arena.take<E>(count);
  }
}

// body<T, E>() for a storage type and the type its products run in.
template <typename Body>
void dispatch_tiles(int32_t dtype, const Body& body) {
  if (dtype == BALORA_F64) return body.template operator()<double, double>();
  if (dtype == BALORA_F32) return body.template operator()<float, float>();
  if (dtype == BALORA_F16) return body.template operator()<f16, float>();
  if (tile_gemm_has_bf16()) return body.template operator()<bf16, bf16>();
  return body.template operator()<bf16, float>();
}

// ---- products -----------------------------------------------------------------------------------

// Tiles on the diagonal of a causal mask, or on the edge of a window, are masked in part: at T =
// 240 two fifths of all tiles lie on the diagonal. The columns of a product go by blocks of
// tile_columns(), its rows and what it sums over by tile_step(); what is outside of a block's range
// is neither read nor written.

// Key j and query i of a tile see each other where j + low <= i < j + high.
struct Band {
  int64_t low, high;

  // Keys [first, last) of n that see any of the queries [first_query, last_query), in whole steps.
  TileRange keys(int64_t first_query, int64_t last_query, int64_t n, int64_t step) const {
    return whole(first_query - high + 1, last_query - low, n, step);
  }
  // The same for the queries that see any of the keys.
  TileRange queries(int64_t first_key, int64_t last_key, int64_t r, int64_t step) const {
    return whole(first_key + low, last_key - 1 + high, r, step);
  }
  bool covers(int64_t n, int64_t r) const { return low <= 1 - n && high >= r; }
  // Whether any of n keys and r queries do.
  bool meets(int64_t n, int64_t r) const { return low < r && high > 1 - n; }

 private:
  static TileRange whole(int64_t first, int64_t last, int64_t count, int64_t step) {
    first = std::clamp<int64_t>(first, 0, count) / step * step;
    last = std::clamp<int64_t>(last, first, count);
    return {first, std::min((last + step - 1) / step * step, count)};
  }
};

inline Band band_of(const Geometry& g, const Block& block) {
  const int64_t shift = block.first_key - block.first_query, far = Geometry::kFar;
  return {g.causal   ? shift
          : g.window ? shift - g.window + 1
                     : -far,
          g.window ? shift + g.window : far};
}

// Elements between columns of a B operand.
template <typename E>
constexpr int64_t kPairWidth = std::is_same_v<E, bf16> ? 2 : 1;

// Calls body(query, queries, keys) for blocks of queries and the keys, of n, that these see: two
// blocks of tile_columns() beside each other where both see the keys, which is faster, and one
// elsewhere. For each query, keys rise.
template <typename E, typename Body>
void for_blocks(const Band& band, int64_t r, int64_t n, const Body& body) {
  const int64_t columns = tile_columns<E>(), step = tile_step<E>();
  const auto visit = [&](int64_t query, int64_t queries, int64_t first, int64_t last) {
    if (first < last) body(query, queries, TileRange{first, last});
  };
  for (int64_t i = 0; i < r; i += kTileUnit) {
    const TileRange left = band.keys(i, i + columns, n, step);
    if (columns == kTileUnit) {
      visit(i, columns, left.first, left.last);
      continue;
    }
    const TileRange right = band.keys(i + columns, i + kTileUnit, n, step);
    const int64_t first = std::max(left.first, right.first);
    const int64_t last = std::max(first, std::min(left.last, right.last));
    visit(i, columns, left.first, std::min(left.last, first));
    visit(i + columns, columns, right.first, std::min(right.last, first));
    visit(i, kTileUnit, first, last);
    visit(i, columns, std::max(left.first, last), left.last);
    visit(i + columns, columns, std::max(right.first, last), right.last);
  }
}

// scores (n,r) = a (n,d) b (d,r): keys by queries. Rows of b are ldb apart.
template <typename E, typename A>
void score_product(const Band& band, TileShape s, const E* a, const E* b, int64_t ldb, A* scores) {
  if (band.covers(s.m, s.n)) return tile_gemm(s, a, s.k, b, ldb, scores, s.n, false);
  for_blocks<E>(band, s.n, s.m, [&](int64_t i, int64_t queries, const TileRange& keys) {
    tile_gemm({keys.count(), queries, s.k}, a + keys.first * s.k, s.k, b + i * kPairWidth<E>, ldb,
              scores + keys.first * s.n + i, s.n, false);
  });
}

// out (n,d) += p (n,r) b (r,d), of several heads beside each other in p and below each other in b:
// sums over queries, of keys. p is zero where a key is not seen.
template <typename E, typename A>
void sum_over_queries(const Band& band, TileShape s, int64_t heads, const E* p, const E* b,
                      A* out) {
  const int64_t ld = heads * s.k, step = band.covers(s.m, s.k) ? s.m : tile_step<E>();
  for (int64_t j = 0; j < s.m; j += step) {
    const TileRange seen = band.queries(j, j + step, s.k, tile_step<E>());
    const bool all = seen.count() == s.k;
    const TileShape shape{step, s.n, all ? ld : seen.count()};
    for (int64_t first = seen.first; first < ld; first += all ? ld : s.k) {
      tile_gemm(shape, p + j * ld + first, ld, b + first * s.n, s.n, out + j * s.n, s.n, true);
    }
  }
}

// out (d,r) += a (d,n) p (n,r): sums over keys, of queries.
template <typename E, typename A>
void sum_over_keys(const Band& band, TileShape s, const E* a, const E* p, A* out) {
  if (band.covers(s.k, s.n)) return tile_gemm(s, a, s.k, p, out, s.n, true);
  for_blocks<E>(band, s.n, s.k, [&](int64_t i, int64_t queries, const TileRange& keys) {
    tile_gemm({s.m, queries, keys.count()}, a + keys.first, s.k,
              p + keys.first * s.n + i * kPairWidth<E>, s.n, out + i, s.n, true);
  });
}

// ---- the same of scores that lie as queries by keys ---------------------------------------------

// scores (r,n) = q (r,d) b (d,n)
template <typename E>
void score_rows(const Band& band, TileShape s, const E* q, const E* b, E* scores) {
  if (band.covers(s.n, s.m)) return tile_gemm(s, q, s.k, b, scores, s.n, false);
  const int64_t step = tile_columns<E>();
  for (int64_t i = 0; i < s.m; i += step) {
    const TileRange keys = band.keys(i, i + step, s.n, step);
    tile_gemm({step, keys.count(), s.k}, q + i * s.k, s.k, b + keys.first, s.n,
              scores + i * s.n + keys.first, s.n, false);
  }
}

// out (n,d) += p (r,n)^T b (r,d): sums over queries, of keys. p is zero where a key is not seen.
template <typename E>
void sum_rows_over_queries(const Band& band, TileShape s, const E* p, const E* b, E* out) {
  if (band.covers(s.m, s.k)) return tile_gemm_columns(s, p, s.m, b, s.n, out, s.n, true);
  const int64_t step = tile_step<E>();
  for (int64_t j = 0; j < s.m; j += step) {
    const TileRange queries = band.queries(j, j + step, s.k, step);
    tile_gemm_columns({step, s.n, queries.count()}, p + queries.first * s.m + j, s.m,
                      b + queries.first * s.n, s.n, out + j * s.n, s.n, true);
  }
}

// out (r,d) += p (r,n) b (n,d): sums over keys, of queries.
template <typename E>
void sum_rows_over_keys(const Band& band, TileShape s, const E* p, const E* b, E* out) {
  if (band.covers(s.k, s.m)) return tile_gemm(s, p, s.k, b, out, s.n, true);
  const int64_t step = tile_step<E>();
  for (int64_t i = 0; i < s.m; i += step) {
    const TileRange keys = band.keys(i, i + step, s.k, step);
    tile_gemm({step, s.n, keys.count()}, p + i * s.k + keys.first, s.k, b + keys.first * s.n, s.n,
              out + i * s.n, s.n, true);
  }
}

// ---- row loops ----------------------------------------------------------------------------------

// Who sees whom for loops that go by blocks of lanes: 16 queries beside each other, one key after
// the other. Tile is a SoftmaxTile or a GradTile.
constexpr int64_t kLanes = 16;

// Part of a tile's extent.
struct Columns {
  int64_t first, last;
};

BALORA_INLINE Columns clip(int64_t first, int64_t last, int64_t origin, int64_t count) {
  return {std::clamp<int64_t>(first - origin, 0, count),
          std::clamp<int64_t>(last - origin, 0, count)};
}

// The keys of the tile that its query i sees.
template <typename Tile>
BALORA_INLINE Columns keys_of_query(const Tile& t, int64_t i) {
  const int64_t query = t.block.first_query + i;
  return clip(t.geometry.first_key(query), t.geometry.last_key(query), t.block.first_key,
              t.block.keys);
}

// The keys that a block of queries meets: [first, last) by any of them, [all_first, all_last) by
// every one.
struct BlockKeys {
  int64_t first, last, all_first, all_last;
};

// `column` is less than the tile's queries. The ends of the first range are even.
template <typename Tile>
BALORA_INLINE BlockKeys keys_of_block(const Tile& t, int64_t column, int64_t lanes = kLanes) {
  const auto& g = t.geometry;
  const int64_t low = t.block.first_query + column;
  const int64_t high = t.block.first_query + std::min(column + lanes, t.block.queries) - 1;
  const Columns any = clip(g.first_key(low), g.last_key(high), t.block.first_key, t.block.keys);
  const Columns all = clip(g.first_key(high), g.last_key(low), t.block.first_key, t.block.keys);
  return {any.first & ~int64_t{1}, (any.last + 1) & ~int64_t{1}, all.first,
          std::max(all.first, all.last)};
}

// One key's share of a tile: the queries [first, last) that see it.
struct KeyRow {
  int64_t first, last;

  bool sees(int64_t column, int64_t count) const {
    return first <= column && last >= column + count;
  }
  // The lanes of the block at `column` that see it, as a mask.
  uint16_t lanes(int64_t column) const {
    const int64_t low = std::clamp<int64_t>(first - column, 0, kLanes);
    const int64_t high = std::clamp<int64_t>(last - column, low, kLanes);
    return static_cast<uint16_t>((1u << high) - (1u << low));
  }
};

template <typename Tile>
BALORA_INLINE KeyRow key_row(const Tile& t, int64_t j) {
  if (j >= t.block.keys) return {0, 0};
  const int64_t key = t.block.first_key + j;
  return {std::max<int64_t>(t.geometry.first_query(key) - t.block.first_query, 0),
          std::min(t.geometry.last_query(key) - t.block.first_query, t.block.queries)};
}

// Row loops run over whole blocks of lanes: a constant trip count needs no remainder loop, and what
// a block holds outside [first, last) is masked before and after.
BALORA_INLINE int64_t block_first(Columns c) {
  return c.first / kLanes * kLanes;
}
BALORA_INLINE int64_t block_last(Columns c) {
  return (c.last + kLanes - 1) / kLanes * kLanes;
}

// The row of a tile of the backward, or the part of it that is seen.
template <typename E>
BALORA_INLINE Columns seen_in_row(const GradTile<E>& t, int64_t row) {
  if constexpr (kQueriesByKeys<E>) {
    return keys_of_query(t, row);
  } else {
    const KeyRow queries = key_row(t, row);
    return clip(queries.first, queries.last, 0, t.block.queries);
  }
}

}  // namespace balora::attention
