// The row loops of attention with relative positions: one query against the keys that it sees.
// A is the accumulator type.
#pragma once
#include <cstdint>

namespace balora::relative {

// What the relative position adds, all pointers at the query's own place: element 0 belongs to key
// 0.
template <typename A>
struct TermRow {
  const A* bias;         // by key, or null
  const int32_t* index;  // row of the position tables by key, or null
  const A* to_position;  // q_t position_k by row of the table
  const A* from_key;     // k_j position_q, (keys, stride) by row of the table
  int64_t stride;
};

template <typename A>
struct RowLoops {
  // scores (keys), products of q and k, become scale * (products + terms) + bias
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
  A* from_key;
  int64_t stride;
};
template <typename A>
void scatter_terms(const TermGradientRow<A>& terms, A scale, int64_t keys, const A* ds);

}  // namespace balora::relative
