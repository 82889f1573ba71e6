#include "kernels/cpu/attention/relative_scores.h"

#include "kernels/cpu/attention/attention_band.h"
#include "kernels/shared/messages.h"

namespace balora::relative {

using attention::kPairWidth;

namespace {

void check_index(const Relative& r) {
  const View* table = r.position_k ? r.position_k : r.position_q;
  if (!table) return;
  const auto* index = data_of<int32_t>(r.index);
  for (int64_t i = 0; i < r.index->shape[0]; ++i) {
    if (index[i] >= 0 && index[i] < table->shape[0]) continue;
    throw ArgumentError(messages::position_index(i, index[i], table->shape[0]));
  }
}

}  // namespace

std::vector<Pair> read_pairs(const Relative& r) {
  check_index(r);
  const auto queries = attention::read_segments(r.cu_queries, r.query_lengths, r.q->shape[0]);
  const auto keys = attention::read_segments(r.cu_keys, r.key_lengths, r.k->shape[0]);
  const View* table = r.bias ? r.bias : r.index;
  std::vector<Pair> pairs;
  for (size_t b = 0; b < queries.size(); ++b) {
    pairs.push_back({queries[b], keys[b]});
    const int64_t longest = std::max(queries[b].rows, keys[b].rows);
    if (!table || 2 * longest - 1 <= table->shape[0]) continue;
    throw ArgumentError(messages::segment_reach(static_cast<int64_t>(b), longest, table->shape[0]));
  }
  return pairs;
}

Extents::Extents(const Relative& r, const std::vector<Pair>& pairs) : size(r.q->shape[2]) {
  for (const Pair& pair : pairs) keys = std::max(keys, pair.keys.rows);
  if (r.position_k) positions = r.position_k->shape[0];
  if (r.position_q) positions = r.position_q->shape[0];
  if (r.bias) relative = r.bias->shape[0];
}

template <typename T, typename E>
Scores<T, E>::Scores(Arena& arena, const Relative& r, const Extents& e)
    : r_(r),
      q_(r.q),
      k_(r.k),
      position_k_(r.position_k),
      position_q_(r.position_q),
      extents_(e),
      index_(data_of<int32_t>(r.index)),
      reach_(((r.bias    ? r.bias->shape[0]
               : r.index ? r.index->shape[0]
                         : 1) -
              1) /
             2),
      causal_(r.causal != 0) {
  const int64_t n = e.padded_keys(), d = e.padded_size(), p = e.padded_positions();
  scores_ = arena.take<A>(kTile * n);
  queries_ = arena.take<E>(kTile * d);
  keys_transposed_ = arena.take<E>(n * d);
  bias_ = arena.take<A>(e.relative);
  key_rows_ = arena.take<E>(r.position_q ? n * d : 0);
  position_k_transposed_ = arena.take<E>(r.position_k ? p * d : 0);
  position_q_transposed_ = arena.take<E>(r.position_q ? p * d : 0);
  to_position_ = arena.take<A>(r.position_k ? kTile * p : 0);
  from_key_ = arena.take<A>(r.position_q ? n * p : 0);
}

template <typename T, typename E>
void Scores<T, E>::take_head(int64_t head) {
  head_ = head;
  const int64_t p = extents_.padded_positions(), d = extents_.padded_size();
  if (r_.position_k) {
    core_of<T, E>().columns_right(position_k_.source(0, head, extents_.positions),
                                  position_k_transposed_, p, d);
  }
  if (r_.position_q) {
    core_of<T, E>().columns_right(position_q_.source(0, head, extents_.positions),
                                  position_q_transposed_, p, d);
  }
  if (!r_.bias) return;
  const T* bias = data_of<T>(r_.bias) + head;
  for (int64_t i = 0; i < extents_.relative; ++i) bias_[i] = load(bias[i * r_.bias->shape[1]]);
}

template <typename T, typename E>
void Scores<T, E>::take_keys(const Pair& pair) {
  pair_ = pair;
  keys_ = pair.keys.rows;
  const int64_t n = padded_keys(), d = extents_.padded_size(), p = extents_.padded_positions();
  const Source<T> rows = k_.source(pair.keys.begin, head_, keys_);
  core_of<T, E>().columns_right(rows, keys_transposed_, n, d);
  if (!r_.position_q) return;
  core_of<T, E>().rows_left(rows, key_rows_, n, d);
  for (int64_t first = 0; first < keys_; first += kTile) {
    const Positions met = met_by_keys(first);
    tile_gemm({std::min(kTile, n - first), met.count, d}, key_rows_ + first * d, d,
              position_q_transposed_ + met.first * kPairWidth<E>, p,
              from_key_ + first * p + met.first, p, false);
  }
}

template <typename T, typename E>
int64_t Scores<T, E>::compute(int64_t first) {
  const int64_t queries = std::min(kTile, pair_.queries.rows - first), m = tile_padded(queries);
  const int64_t n = padded_keys(), d = extents_.padded_size(), p = extents_.padded_positions();
  core_of<T, E>().rows_left(q_.source(pair_.queries.begin + first, head_, queries), queries_, m, d);
  tile_gemm({m, met_keys(first), d}, queries_, d, keys_transposed_, n, scores_, n, false);
  const PositionTile tile = position_tile(first, queries);
  if (r_.position_k) {
    const Positions met = met_by_queries(first, queries);
    tile_gemm({m, met.count, d}, queries_, d, position_k_transposed_ + met.first * kPairWidth<E>, p,
              to_position_ + met.first, p, false);
    add_of_queries(tile, to_position_, scores_, n);
  }
  if (r_.position_q) add_of_keys(tile, from_key_, scores_, n);
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t t = first + i;
    RowLoops<A>::score(r_.bias ? bias_ + (reach_ - t) : nullptr, static_cast<A>(r_.scale), seen(t),
                       row(i));
  }
  return queries;
}

template class Scores<float, float>;
template class Scores<bf16, bf16>;
template class Scores<bf16, float>;
template class Scores<f16, float>;
template class Scores<double, double>;

}  // namespace balora::relative
