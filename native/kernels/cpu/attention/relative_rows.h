// The row loops of attention with relative positions: one query against the keys that it sees, and
// what a tile of queries exchanges with the keys' rows of the position tables. A is the type that
// sums are kept in.
#pragma once
#include <cstdint>

namespace balora::relative {

// The terms of the relative position. All pointers are at the query's own place: element 0 belongs
// to key 0.
template <typename A>
struct TermRow {
  const A* bias;         // by key, or null
  const int32_t* index;  // row of the position tables by key, or null
  const A* to_position;  // q_t position_k by row of the table, or null
};

template <typename A>
struct RowLoops {
  // scores (keys), sums of products, become scale * (sums + terms) + bias
  static void score(const TermRow<A>& terms, A scale, int64_t keys, A* scores);
  // scores (keys) become probabilities, zeros up to `padded`; returns the log-sum-exp. keys > 0
  static A softmax(int64_t keys, int64_t padded, A* scores);
  // scores (keys) become probabilities e^(score - lse), dp their gradient ds = p (dp - delta);
  // zeros up to `padded` in both
  static void gradient(A lse, A delta, int64_t keys, int64_t padded, A* scores, A* dp);
};

// Adds the gradient of a row's scores to those of its terms; null ones are not wanted.
template <typename A>
struct TermGradientRow {
  A* bias;               // by key
  const int32_t* index;  // by key
  A* to_position;
};
template <typename A>
void scatter_terms(const TermGradientRow<A>& terms, A scale, int64_t keys, const A* ds);

// A tile of queries against all keys. Query i and key j meet at row index[j - i] of the position
// tables: along the queries of one key those rows lie side by side, along the keys of one query
// each is in a row of memory of its own.
struct KeyTile {
  const int32_t* index;
  int64_t queries, keys;
  int64_t stride;  // of from_key (keys, stride): k_j position_q by row of the table
};
// scores (queries, ld) += from_key
template <typename A>
void add_from_key(const KeyTile& tile, const A* from_key, A* scores, int64_t ld);
// from_key += ds, which is transposed: (keys, ld) by query
template <typename A>
void sum_from_key(const KeyTile& tile, const A* transposed_ds, int64_t ld, A* from_key);

}  // namespace balora::relative
