// Which scores of a tile exist, and products that leave out the others. Tiles on the diagonal of a
// causal mask, or on the edge of a window, are masked in part: at T = 240 two fifths of all tiles
// lie on the diagonal. The columns of a product go by blocks of tile_columns(), its rows and what
// it sums over by tile_step(); what is outside of a block's range is neither read nor written.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/cpu/attention/attention_plan.h"
#include "kernels/cpu/runtime/inline.h"

namespace balora::attention {

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

inline Band band_of(const Geometry& g, int64_t first_query, int64_t first_key) {
  const int64_t shift = first_key - first_query, far = int64_t{1} << 40;
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
  const int64_t query = t.first_query + i;
  return clip(t.geometry.first_key(query), t.geometry.last_key(query, t.segment_rows), t.first_key,
              t.keys);
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
  const int64_t low = t.first_query + column;
  const int64_t high = t.first_query + std::min(column + lanes, t.queries) - 1;
  const Columns any = clip(g.first_key(low), g.last_key(high, t.segment_rows), t.first_key, t.keys);
  const Columns all = clip(g.first_key(high), g.last_key(low, t.segment_rows), t.first_key, t.keys);
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
  if (j >= t.keys) return {0, 0};
  const int64_t key = t.first_key + j;
  return {std::max<int64_t>(t.geometry.first_query(key) - t.first_query, 0),
          std::min(t.geometry.last_query(key, t.segment_rows) - t.first_query, t.queries)};
}

}  // namespace balora::attention
