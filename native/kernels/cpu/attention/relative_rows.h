// The loops of attention with relative positions over scores: one query against the keys that it
// sees, and what a tile of queries exchanges with the rows of the position tables. A is the type
// that sums are kept in.
#pragma once
#include <cstdint>

namespace balora::relative {

// The gradient of a row of scores.
template <typename A>
struct GradientRow {
  A lse, delta, scale;
  int64_t keys, padded;
  A* scores;  // (padded), become probabilities e^(score - lse)
  A* dp;      // (padded), become ds = p (dp - delta), times scale; zeros after the keys in both
  A* dbias;   // by key, gets ds without scale; or null
};

template <typename A>
struct RowLoops {
  // scores (keys), sums of products, become scale * sums + bias; bias by key, or null
  static void score(const A* bias, A scale, int64_t keys, A* scores);
  // scores (keys) become probabilities, zeros up to `padded`; returns the log-sum-exp. keys > 0
  static A softmax(int64_t keys, int64_t padded, A* scores);
  static void gradient(const GradientRow<A>& row);
};

// Queries and keys of a block: read along one side, written along the other.
constexpr int64_t kPositionBlock = 16;

// A tile of queries against keys. Query i and key j meet at row index[j - i] of the position
// tables. Products with these rows lie in a row of memory for each query or each key, `stride`
// apart, which is at least kPositionBlock; what was not met is not read.
struct PositionTile {
  const int32_t* index;
  int64_t queries, keys;
  int64_t stride;
};
// Exchanges of blocks of kPositionBlock queries and keys, or less, in a processor's instructions.
template <typename A>
struct PositionCore {
  using Add = void (*)(const PositionTile& block, const A* of_side, A* scores, int64_t ld);
  using Sum = void (*)(const PositionTile& block, const A* ds, int64_t ld, A* of_side);

  Add add_of_queries, add_of_keys;
  Sum sum_of_queries, sum_of_keys;
};

namespace x86 {
// For whole blocks.
extern const PositionCore<float> avx512_positions;
}  // namespace x86

// scores (queries, ld) += of_queries (queries, stride), or of_keys (keys, stride), where they meet
template <typename A>
void add_of_queries(const PositionTile& tile, const A* of_queries, A* scores, int64_t ld);
template <typename A>
void add_of_keys(const PositionTile& tile, const A* of_keys, A* scores, int64_t ld);
// The same backwards: of_queries, or of_keys, += ds (queries, ld)
template <typename A>
void sum_of_queries(const PositionTile& tile, const A* ds, int64_t ld, A* of_queries);
template <typename A>
void sum_of_keys(const PositionTile& tile, const A* ds, int64_t ld, A* of_keys);

}  // namespace balora::relative
