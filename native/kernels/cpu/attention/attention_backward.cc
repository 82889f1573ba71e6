// Attention backward: probabilities come back from q, k and the saved log-sum-exp, tile by tile.
//   delta = rowsum(dout * out)
//   dp = dout v^T
//   ds = p (dp - delta) * scale
//   dv = p^T dout
//   dk = ds^T q
//   dq = ds k
// A thread owns runs of key tiles, so dk and dv are its own; dq sums over key tiles, and where
// threads share a kv head each keeps its part in a slot, added in order afterwards. No atomics: a
// thread count always gives the same bits. A tile of queries at a time: its packed copies and its
// dq stay in the nearest cache.
#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/attention/attention_slots.h"
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora::attention {
namespace {

// A pair's place in its segment, and what the forward left of its queries.
template <typename A>
struct PairPlace {
  int64_t segment_rows;
  int64_t first_query, queries, first_key, keys;
  bool is_first;   // of the pairs of these queries
  const A* lse;    // (r)
  const A* delta;  // (r)
};

// A tile of queries and one of keys: what of both is packed, the sums of their gradients, and the
// five products between. Scores of f32 and f64 lie as queries by keys: queries and dout are packed
// once each, for A and B operands alike, and what the other operands take to turn is done once for
// a tile of keys. Products of bf16 multiply pairs of rows of p and ds, which are summed over
// queries, so these lie as keys by queries here. AMX has a backward of its own.
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

template <typename T, typename A>
struct Operands {
  Heads<T> dout, q, k, v, out, dq, dk, dv;
  const A* lse;  // (M,H)

  explicit Operands(const balora_attention_backward& o)
      : dout(o.dout),
        q(o.q),
        k(o.k),
        v(o.v),
        out(o.out),
        dq(o.dq),
        dk(o.dk),
        dv(o.dv),
        lse(data_of<A>(o.lse)) {}
};

// One thread's scratch: the pair of tiles that is at work, and which tiles of keys are packed.
template <typename T, typename E>
struct Scratch {
  using A = Acc<E>;
  TilePair<T, E> pair;
  A *lse, *delta;
  uint8_t* packed_keys;

  Scratch(Arena& arena, const Geometry& g, int64_t longest) : pair(arena, g, tile_count(longest)) {
    for (A** row : {&lse, &delta}) *row = arena.take<A>(kTile);
    packed_keys = arena.take<uint8_t>(tile_count(longest));
  }
};

template <typename T, typename E>
class Backward {
 public:
  using A = Acc<E>;

  Backward(const Context* ctx, const Geometry& g, const balora_attention_backward& o,
           const Slots<A>& slots)
      : ctx_(ctx), g_(g), o_(o), slots_(slots) {}

  void run(const Segment& segment, const Run& run, const Scratch<T, E>& s) const {
    const int64_t tiles = tile_count(segment.rows), tile = kTile * g_.padded();
    std::fill(s.packed_keys, s.packed_keys + tiles, uint8_t{0});
    s.pair.clear_keys(run.first, run.last);
    for (int64_t t = segment.skip / kTile; t < tiles && !is_stopped(ctx_); ++t) {
      for (int64_t h = 0; h < g_.group(); ++h) {
        query_tile(segment, run, h, t, s);
        if (run.slot < 0) {
          write_dq(segment, run.kv_head * g_.group() + h, t, s.pair.dq());
        } else {
          std::copy(s.pair.dq(), s.pair.dq() + tile, slots_.at(run.slot, h) + t * tile);
        }
      }
    }
    write_keys(segment, run, s);
  }

  // Stores the sums of a query tile of a head as rows of dq.
  void write_dq(const Segment& segment, int64_t head, int64_t tile, const A* sums) const {
    const Queries own(segment, tile);
    if (own.count() == 0) return;
    TilePair<T, E>::write_queries(sums, g_, own.count(), o_.dq.at(segment.query(own.first), head),
                                  o_.dq.stride);
  }

 private:
  void query_tile(const Segment& segment, const Run& run, int64_t h, int64_t tile,
                  const Scratch<T, E>& s) const {
    const TileRange met = keys_of_queries(g_, segment, tile);
    const int64_t first = std::max(met.first, run.first), last = std::min(met.last, run.last);
    if (first >= last) return s.pair.clear_queries();
    const Queries own(segment, tile);
    pack_queries(segment, run.kv_head * g_.group() + h, own, s);
    for (int64_t key_tile = first; key_tile < last; ++key_tile) {
      const Keys keys(segment, key_tile);
      pack_keys(keys, run.kv_head, key_tile, s);
      s.pair.run({.segment_rows = segment.rows,
                  .first_query = own.first,
                  .queries = own.count(),
                  .first_key = keys.first,
                  .keys = keys.count,
                  .is_first = key_tile == first,
                  .lse = s.lse,
                  .delta = s.delta});
    }
  }

  void pack_keys(const Keys& keys, int64_t kv_head, int64_t tile, const Scratch<T, E>& s) const {
    if (s.packed_keys[tile]) return;
    s.packed_keys[tile] = 1;
    s.pair.pack_keys(tile, o_.k.source(keys.row, kv_head, keys.count),
                     o_.v.source(keys.row, kv_head, keys.count));
  }

  void pack_queries(const Segment& segment, int64_t head, const Queries& own,
                    const Scratch<T, E>& s) const {
    const int64_t row = segment.query(own.first), queries = own.count();
    const Source<T> dout = o_.dout.source(row, head, queries);
    s.pair.pack_queries(o_.q.source(row, head, queries), dout);
    core_of<T, E>().row_dots(dout, o_.out.source(row, head, queries), s.delta);
    for (int64_t i = 0; i < queries; ++i) s.lse[i] = o_.lse[(row + i) * g_.heads + head];
  }

  void write_keys(const Segment& segment, const Run& run, const Scratch<T, E>& s) const {
    const int64_t first = run.first * kTile, d = g_.padded(), row = segment.begin + first;
    const int64_t keys = std::min(segment.rows, run.last * kTile) - first;
    for (const auto& [sums, out] : {std::pair(s.pair.dk(), o_.dk), std::pair(s.pair.dv(), o_.dv)}) {
      core_of<T, E>().unpack_rows(sums + first * d, d, out.at(row, run.kv_head), out.stride, keys,
                                  g_.size);
    }
  }

  const Context* ctx_;
  Geometry g_;
  Operands<T, A> o_;
  Slots<A> slots_;
};

template <typename T>
void clear_padding(const Geometry& g, const balora_attention_backward& o) {
  for (const Segment& segment : segments_of(o)) {
    const int64_t padding = segment.begin + segment.rows;
    clear_rows(Heads<T>(o.dq), g.heads, segment.query(std::max(segment.rows, segment.skip)),
               segment.query(segment.stop - segment.begin));
    clear_rows(Heads<T>(o.dk), g.kv_heads, padding, segment.stop);
    clear_rows(Heads<T>(o.dv), g.kv_heads, padding, segment.stop);
  }
}

void backward_by_tiles(Context* ctx, const balora_attention_backward& o) {
  const Geometry g = geometry_of(o);
  dispatch_tiles(o.q->dtype, [&]<typename T, typename E>() {
    using A = Acc<E>;
    backward_runs<Scratch<T, E>, A>(ctx, g, segments_of(o), [&](const Slots<A>& slots) {
      return Backward<T, E>(ctx, g, o, slots);
    });
  });
}

constexpr Implementation<balora_attention_backward> kBackward[] = {
    BALORA_X86(
        "amx", platform::kAmx,
        [](const balora_attention_backward& o) { return o.q->dtype == BALORA_BF16; },
        x86::backward_on_amx),
    {"tiles", 0, nullptr, backward_by_tiles},
};

}  // namespace
}  // namespace balora::attention

namespace balora {

BALORA_IMPLEMENTATIONS(attention_backward, attention::kBackward)

int32_t attention_backward_kernel(Context* ctx, const balora_attention_backward& o) {
  dispatch_float(o.q->dtype,
                 [&]<typename T>() { attention::clear_padding<T>(attention::geometry_of(o), o); });
  return run_first(attention::kBackward, ctx, o);
}

}  // namespace balora
