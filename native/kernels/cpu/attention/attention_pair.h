// The backward of attention for a tile of queries and a tile of keys: what of both is packed, the
// sums of their gradients, and the five products between. Scores of f32 and f64 lie as queries by
// keys: queries and dout are packed once each, for A and B operands alike, and what the other
// operands take to turn is done once for a tile of keys. Products of bf16 multiply pairs of rows of
// p and ds, which are summed over queries, so these lie as keys by queries here. AMX has
// a backward of its own.
#pragma once
#include <algorithm>

#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/attention/attention_tiles.h"

namespace balora::attention {

// A pair's place in its segment, and what the forward left of its queries.
template <typename A>
struct PairPlace {
  int64_t segment_rows;
  int64_t first_query, queries, first_key, keys;
  bool is_first;   // of the pairs of these queries
  const A* lse;    // (r)
  const A* delta;  // (r)
};

template <typename T, typename E>
class TilePair {
 public:
  using A = Acc<E>;

  // `tiles`: of keys.
  TilePair(Arena& arena, const Geometry& g, int64_t tiles)
      : g_(g), query_scale_(take_query_scale<E>(g_)), tile_(kTile * g.padded()) {
    for (E** keys : {&keys_, &keys_turned_, &values_}) *keys = arena.take<E>(tiles * tile_);
    const int64_t turned = kQueriesByKeys<E> ? 0 : tile_;
    for (E** rows : {&q_, &dout_}) *rows = arena.take<E>(tile_);
    for (E** columns : {&q_turned_, &dout_turned_}) *columns = arena.take<E>(turned);
    for (A** square : {&scores_, &dp_}) *square = arena.take<A>(kTile * kTile);
    p_ = in_place_or_taken<E>(arena, scores_);
    ds_ = in_place_or_taken<E>(arena, dp_);
    ds_right_ = kQueriesByKeys<E> ? nullptr : arena.take<E>(kTile * kTile);
    for (A** sums : {&dk_, &dv_}) *sums = arena.take<A>(tiles * tile_);
    dq_ = arena.take<A>(tile_);
  }

  // (keys, padded size) from tile 0 on.
  const A* dk() const { return dk_; }
  const A* dv() const { return dv_; }
  // (r, padded size), of bf16 (padded size, r).
  const A* dq() const { return dq_; }

  // Sums of the tiles [first, last) of keys, or of queries that meet no keys, become zeros.
  void clear_keys(int64_t first, int64_t last) const {
    for (A* sums : {dk_, dv_}) std::fill(sums + first * tile_, sums + last * tile_, A(0));
  }
  void clear_queries() const { std::fill(dq_, dq_ + tile_, A(0)); }

  void pack_keys(int64_t tile, const Source<T>& k, const Source<T>& v) const {
    const int64_t n = tile_padded(k.rows), d = g_.padded(), at = tile * tile_;
    if constexpr (kQueriesByKeys<E>) {
      core_of<T, E>().columns_right(k, keys_turned_ + at, n, d);
      core_of<T, E>().columns_right(v, values_ + at, n, d);
      core_of<T, E>().rows_right(k, keys_ + at, n, d);
      scale_packed(keys_ + at, n * d, query_scale_);
    } else {
      core_of<T, E>().rows_left(k, keys_ + at, n, d);
      core_of<T, E>().rows_left(v, values_ + at, n, d);
      core_of<T, E>().columns_left(k, keys_turned_ + at, n, d);
    }
  }

  void pack_queries(const Source<T>& q, const Source<T>& dout) const {
    const int64_t r = tile_padded(q.rows), d = g_.padded();
    core_of<T, E>().rows_right(q, q_, r, d);
    core_of<T, E>().rows_right(dout, dout_, r, d);
    if constexpr (kQueriesByKeys<E>) {
      scale_packed(q_, r * d, query_scale_);
    } else {
      core_of<T, E>().columns_right(q, q_turned_, r, d);
      core_of<T, E>().columns_right(dout, dout_turned_, r, d);
    }
  }

  // Adds what the pair gives to the sums.
  void run(const PairPlace<A>& place) const {
    const Band band = band_of(g_, place.first_query, place.first_key);
    gradients(place, band);
    add(place, band);
  }

  // Stores sums of dq as rows, `stride` elements apart.
  static void write_queries(const A* sums, const Geometry& g, int64_t queries, T* out,
                            int64_t stride) {
    if constexpr (kQueriesByKeys<E>) {
      core_of<T, E>().unpack_rows(sums, g.padded(), out, stride, queries, g.size);
    } else {
      core_of<T, E>().unpack_columns(sums, tile_padded(queries), nullptr, out, stride, queries,
                                     g.size);
    }
  }

 private:
  // p and ds of the pair.
  void gradients(const PairPlace<A>& place, const Band& band) const {
    const int64_t r = tile_padded(place.queries), n = tile_padded(place.keys), d = g_.padded();
    const E* keys = (kQueriesByKeys<E> ? keys_turned_ : keys_) + place.first_key * d;
    const E *values = values_ + place.first_key * d, *q = kQueriesByKeys<E> ? q_ : q_turned_;
    const E* dout = kQueriesByKeys<E> ? dout_ : dout_turned_;
    if constexpr (std::is_same_v<E, float>) {
      const auto whole_gradient = core_of<T, E>().whole_gradient;
      if (whole_gradient && is_whole(band, place.queries, place.keys) && g_.softcap == 0) {
        whole_gradient({.size = d,
                        .q = q,
                        .dout = dout,
                        .keys = keys,
                        .values = values,
                        .lse = place.lse,
                        .delta = place.delta,
                        .p = p_,
                        .ds = ds_});
        return;
      }
    }
    if constexpr (kQueriesByKeys<E>) {
      score_rows(band, {r, n, d}, q, keys, scores_);
      score_rows(band, {r, n, d}, dout, values, dp_);
    } else {
      score_product(band, {n, r, d}, keys, q, scores_);
      score_product(band, {n, r, d}, values, dout, dp_);
    }
    score_gradient<T, E>({.geometry = g_,
                          .segment_rows = place.segment_rows,
                          .first_query = place.first_query,
                          .queries = place.queries,
                          .first_key = place.first_key,
                          .keys = place.keys,
                          .padded_queries = r,
                          .padded_keys = n,
                          .scores = scores_,
                          .dp = dp_,
                          .lse = place.lse,
                          .delta = place.delta,
                          .p = p_,
                          .ds = ds_,
                          .ds_right = ds_right_});
  }

  // Their sums.
  void add(const PairPlace<A>& place, const Band& band) const {
    const int64_t r = tile_padded(place.queries), n = tile_padded(place.keys), d = g_.padded();
    const int64_t at = place.first_key * d;
    if constexpr (kQueriesByKeys<E>) {
      sum_rows_over_queries(band, {n, d, r}, p_, dout_, dv_ + at);
      sum_rows_over_queries(band, {n, d, r}, ds_, q_, dk_ + at);
      sum_rows_over_keys(band, {r, d, n}, ds_, keys_ + at, dq_, !place.is_first);
    } else {
      if (place.is_first) clear_queries();
      sum_over_queries(band, {n, d, r}, p_, dout_, dv_ + at);
      sum_over_queries(band, {n, d, r}, ds_, q_, dk_ + at);
      sum_over_keys(band, {d, r, n}, keys_turned_ + at, ds_right_, dq_);
    }
  }

  Geometry g_;
  double query_scale_;
  int64_t tile_;
  // B operands (n,d), (d,n), (d,n); of bf16 A operands (n,d), (d,n), (n,d).
  E *keys_, *keys_turned_, *values_;
  E *q_, *dout_;                // B operands (r,d), of f32 and f64 A operands as well
  E *q_turned_, *dout_turned_;  // of bf16: B operands (d,r)
  E *p_, *ds_, *ds_right_;
  A *scores_, *dp_, *dk_, *dv_, *dq_;
};

}  // namespace balora::attention
