// Who sees whom within a tile, for row loops that go by blocks of lanes: 16 queries beside each
// other, one key after the other. Tile is a SoftmaxTile or a GradTile.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/cpu/runtime/inline.h"

namespace balora::attention {

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
