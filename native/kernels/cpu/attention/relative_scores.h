// Scores of attention with relative positions, which its forward and its backward share: one head
// of one segment, a tile of queries against all keys that it may see at once. T is the type of the
// operands, E the type the products run in (attention_tiles.h), A = Acc<E> that of their sums.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/attention/relative_products.h"
#include "kernels/cpu/attention/relative_rows.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/operands/attention.h"

namespace balora::relative {

using attention::core_of;
using attention::Heads;
using attention::kTile;
using attention::Segment;
using attention::Source;

// The queries and the keys of one sequence.
struct Pair {
  Segment queries, keys;

  // Rows of either side that take part, from its beginning on: none where the other has none.
  int64_t seeing() const { return keys.rows > 0 ? queries.rows : 0; }
  int64_t seen() const { return queries.rows > 0 ? keys.rows : 0; }
};

// @throws ArgumentError for segments that do not fit the rows, each other or the relative positions
std::vector<Pair> read_pairs(const Relative& r);

// The most keys of a segment and the sizes of the tables, and what they are padded to.
struct Extents {
  int64_t keys = 0, positions = 0, relative = 0, size = 0;

  Extents(const Relative& r, const std::vector<Pair>& pairs);
  int64_t padded_keys() const { return tile_padded(keys); }
  int64_t padded_positions() const { return tile_padded(positions); }
  int64_t padded_size() const { return tile_padded(size); }
};

template <typename T, typename E>
class Scores {
 public:
  using A = Acc<E>;

  Scores(Arena& arena, const Relative& r, const Extents& extents);

  // Packs what a head needs of the tables.
  void take_head(int64_t head);
  // Packs the keys of a segment, for the head taken.
  void take_keys(const Pair& pair);
  // Scores of the queries from `first` on with their met_keys(), in rows of padded_keys(); returns
  // how many queries there are.
  int64_t compute(int64_t first);

  // Keys that query t of the segment sees.
  int64_t seen(int64_t t) const { return causal_ ? std::min(pair_.keys.rows, t + 1) : keys_; }
  int64_t padded_keys() const { return tile_padded(keys_); }
  A* row(int64_t i) { return scores_ + i * padded_keys(); }
  A* scores() { return scores_; }
  const int32_t* index_of(int64_t t) const { return index_ ? index_ + (reach_ - t) : nullptr; }
  int64_t reach() const { return reach_; }
  // Keys, padded, that the tile of queries from `first` on computes with: those that it may see.
  int64_t met_keys(int64_t first) const {
    const int64_t n = padded_keys();
    return causal_ ? std::min(n, tile_padded(first + kTile)) : n;
  }
  // The tile of `queries` queries from `first` on.
  PositionTile position_tile(int64_t first, int64_t queries) const {
    return {index_of(first), queries, std::min(keys_, met_keys(first)),
            extents_.padded_positions()};
  }
  // Rows of the position tables that a tile of queries meets with its keys, and a tile of keys with
  // all queries.
  Positions met_by_queries(int64_t first, int64_t queries) const {
    const int64_t keys = std::min(keys_, met_keys(first));
    return positions_met(index_of(first + queries - 1), queries + keys - 1);
  }
  Positions met_by_keys(int64_t first) const {
    const int64_t queries = pair_.queries.rows, keys = std::min(kTile, keys_ - first);
    return positions_met(index_of(queries - 1) + first, queries + keys - 1);
  }

 private:
  Relative r_;
  Heads<T> q_, k_, position_k_, position_q_;
  Extents extents_;
  const int32_t* index_;
  int64_t reach_;  // (R-1)/2: place of relative position 0
  bool causal_;
  int64_t head_ = 0, keys_ = 0;
  Pair pair_{};
  A *scores_, *bias_, *to_position_, *from_key_;
  E *queries_, *keys_transposed_, *key_rows_;
  E *position_k_transposed_, *position_q_transposed_;
};

}  // namespace balora::relative
