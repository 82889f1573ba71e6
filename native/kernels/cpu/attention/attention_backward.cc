// Attention backward: probabilities come back from q, k and the saved log-sum-exp, tile by tile.
//   delta = rowsum(dout * out)
//   dp = dout v^T
//   ds = p (dp - delta) * scale
//   dv = p^T dout
//   dk = ds^T q
//   dq = ds k
//   dsink = -sum over queries of e^(sink - lse) delta
// A thread owns runs of key tiles, so dk and dv are its own; dq sums over key tiles, and where
// threads share a kv head each keeps its part in a slot, added in order afterwards. No atomics: a
// thread count always gives the same bits. A tile of queries at a time: its packed copies and its
// dq stay in the nearest cache. Where scores are keys by queries they are made in blocks of a tile,
// and heads that share the keys add to dk and dv together, which are loaded and stored once.
#include <cmath>
#include <optional>

#include "kernels/cpu/attention/positions.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora::attention {
namespace {

// Sums of dq for each run that shares its kv head, by heads of the group, tiles and elements.
template <typename A>
struct Slots {
  A* data;
  int64_t group, size;  // heads, and elements of each

  A* at(int64_t slot, int64_t h) const { return data + (slot * group + h) * size; }
};

// One thread's scratch: tiles of keys, which fill as the queries reach them, and a tile of queries
// of some heads that share them.
template <typename T, typename E>
struct Scratch {
  using A = Acc<E>;
  struct Head {
    E *q_turned, *dout_turned;  // of bf16: B operands (d,r)
    E* ds_right;                // of bf16: a B operand (n,r)
    A *lse, *delta;             // (r)
    A* own_dq;                  // (r,d), of bf16 (d,r)
    A* dq;                      // the same, or the slot of a run
  };
  // B operands (n,d), (d,n), (d,n); of bf16 A operands (n,d), (d,n), (n,d).
  E *keys, *keys_turned, *values;
  A *dk, *dv;      // (n,d)
  E *q, *dout;     // of all heads B operands (r,d), of f32 and f64 A operands as well
  A *scores, *dp;  // of a block
  E *p, *ds;       // (r,n); of bf16 (keys of a block, r of all heads), A operands
  Head heads[kMostHeads];
  uint8_t* packed;
  std::optional<Positions<T, E>> positions;

  Scratch(Arena& arena, const Geometry& g, int64_t longest, const Relative* relative,
          const RelativeGradients* gradients) {
    const int64_t tiles = tile_count(longest), tile = kTile * g.padded(), square = kTile * kTile;
    const int64_t count = std::min(core_of<T, E>().heads, g.group()),
                  turned = kQueriesByKeys<E> ? 0 : 1;
    for (E** operand : {&keys, &keys_turned, &values}) *operand = arena.take<E>(tiles * tile);
    for (A** sums : {&dk, &dv}) *sums = arena.take<A>(tiles * tile);
    for (E** operand : {&q, &dout}) *operand = arena.take<E>(count * tile);
    for (A** block : {&scores, &dp}) *block = arena.take<A>(square);
    p = in_place_or_taken<E>(arena, scores, count * square);
    ds = in_place_or_taken<E>(arena, dp, count * square);
    for (int64_t h = 0; h < count; ++h) {
      for (E** operand : {&heads[h].q_turned, &heads[h].dout_turned}) {
        *operand = arena.take<E>(turned * tile);
      }
      heads[h].ds_right = arena.take<E>(turned * square);
      for (A** row : {&heads[h].lse, &heads[h].delta}) *row = arena.take<A>(kTile);
      heads[h].own_dq = arena.take<A>(tile);
    }
    packed = arena.take<uint8_t>(tiles);
    if (relative) positions.emplace(arena, g, *relative, gradients, longest);
  }
};

template <typename T, typename E>
class Backward {
 public:
  using A = Acc<E>;

  Backward(const Context* ctx, const Geometry& g, const balora_attention_backward& o,
           const Slots<A>& slots)
      : ctx_(ctx),
        g_(g),
        d_(g.padded()),
        tile_(kTile * d_),
        dout_(o.dout),
        q_(o.q),
        k_(o.k),
        v_(o.v),
        out_(o.out),
        dq_(o.dq),
        dk_(o.dk),
        dv_(o.dv),
        lse_(data_of<A>(o.lse)),
        slots_(slots) {}

  void run(const Segment& segment, const Run& run, Scratch<T, E>& s) const {
    std::fill(s.packed, s.packed + tile_count(segment.rows), uint8_t{0});
    if (s.positions) s.positions->take_head(run.kv_head);
    for (A* sums : {s.dk, s.dv}) std::fill(sums + run.first * tile_, sums + run.last * tile_, A(0));
    const int64_t tiles = tile_count(segment.queries);
    for (int64_t t = segment.skip / kTile; t < tiles && !is_stopped(ctx_); ++t) {
      for (int64_t first = 0; first < g_.group(); first += core_.heads) {
        query_tile(segment, run, {first, std::min(core_.heads, g_.group() - first)}, t, s);
      }
    }
    write_keys(segment, run, s);
  }

  // Stores the sums of a query tile of a head as rows of dq.
  void write_dq(const Segment& segment, int64_t head, int64_t tile, const A* sums) const {
    const Queries own(segment, tile);
    if (own.count() == 0) return;
    T* const out = dq_.at(segment.query(own.first), head);
    if constexpr (kQueriesByKeys<E>) {
      core_.unpack_rows(sums, d_, out, dq_.stride, own.count(), g_.size);
    } else {
      const int64_t r = tile_padded(own.count());
      core_.unpack_columns(sums, r, nullptr, out, dq_.stride, own.count(), g_.size);
    }
  }

 private:
  // Some heads of a group.
  struct HeadRange {
    int64_t first, count;
  };

  void query_tile(const Segment& segment, const Run& run, const HeadRange& heads, int64_t tile,
                  Scratch<T, E>& s) const {
    for (int64_t h = 0; h < heads.count; ++h) {
      s.heads[h].dq = s.heads[h].own_dq;
      if (run.slot >= 0) s.heads[h].dq = slots_.at(run.slot, heads.first + h) + tile * tile_;
      std::fill_n(s.heads[h].dq, tile_, A(0));
    }
    const TileRange met = keys_of_queries(g_, segment, tile);
    const int64_t first = std::max(met.first, run.first), last = std::min(met.last, run.last);
    const Queries own(segment, tile);
    const int64_t head = run.kv_head * g_.group() + heads.first;
    if (first < last) pack_queries(segment, head, heads.count, own, s);
    if (s.positions) s.positions->take_queries(segment, own, {first, last});
    for (int64_t key_tile = first; key_tile < last; ++key_tile) {
      const Keys keys(segment, key_tile);
      pack_keys(segment, keys, run.kv_head, key_tile, s);
      const Block pair{own.first, own.count(), keys.first, keys.count};
      if constexpr (kQueriesByKeys<E>) {
        add_queries_by_keys(pair, s);
      } else {
        add_keys_by_queries(pair, heads.count, s);
      }
    }
    if (run.slot >= 0) return;
    if (s.positions) s.positions->finish_queries(s.q, s.heads[0].dq);
    for (int64_t h = 0; h < heads.count; ++h) write_dq(segment, head + h, tile, s.heads[h].dq);
  }

  void pack_keys(const Segment& segment, const Keys& keys, int64_t kv_head, int64_t tile,
                 Scratch<T, E>& s) const {
    if (s.packed[tile]) return;
    s.packed[tile] = 1;
    if (s.positions) s.positions->take_keys(segment, keys);
    const int64_t n = tile_padded(keys.count), at = tile * tile_;
    const Source<T> k = k_.source(keys.row, kv_head, keys.count);
    const Source<T> v = v_.source(keys.row, kv_head, keys.count);
    if constexpr (kQueriesByKeys<E>) {
      core_.columns_right(k, s.keys_turned + at, n, d_);
      core_.columns_right(v, s.values + at, n, d_);
      core_.rows_right(k, s.keys + at, n, d_);
      scale_packed(g_, s.keys + at, n * d_);
    } else {
      core_.rows_left(k, s.keys + at, n, d_);
      core_.rows_left(v, s.values + at, n, d_);
      core_.columns_left(k, s.keys_turned + at, n, d_);
    }
  }

  // From `head` on.
  void pack_queries(const Segment& segment, int64_t head, int64_t heads, const Queries& own,
                    Scratch<T, E>& s) const {
    const int64_t row = segment.query(own.first), queries = own.count(), r = tile_padded(queries);
    for (int64_t h = 0; h < heads; ++h) {
      const typename Scratch<T, E>::Head& to = s.heads[h];
      const Source<T> q = q_.source(row, head + h, queries);
      const Source<T> dout = dout_.source(row, head + h, queries);
      core_.rows_right(q, s.q + h * r * d_, r, d_);
      core_.rows_right(dout, s.dout + h * r * d_, r, d_);
      if constexpr (kQueriesByKeys<E>) {
        scale_packed(g_, s.q, r * d_);
      } else {
        core_.columns_right(q, to.q_turned, r, d_);
        core_.columns_right(dout, to.dout_turned, r, d_);
      }
      core_.row_dots(dout, out_.source(row, head + h, queries), to.delta);
      for (int64_t i = 0; i < queries; ++i) to.lse[i] = lse_[(row + i) * g_.heads + head + h];
    }
  }

  // Adds to the sums what a tile of queries and one of keys give.
  void add_queries_by_keys(const Block& pair, Scratch<T, E>& s) const {
    const int64_t r = tile_padded(pair.queries), n = tile_padded(pair.keys);
    const int64_t at = pair.first_key * d_;
    const Band band = band_of(g_, pair);
    const auto& head = s.heads[0];
    score_rows(band, {r, n, d_}, s.q, s.keys_turned + at, s.scores);
    score_rows(band, {r, n, d_}, s.dout, s.values + at, s.dp);
    if (s.positions) s.positions->add(pair, s.scores, n);
    score_gradient<T, E>({.geometry = g_,
                          .block = pair,
                          .padded_queries = r,
                          .padded_keys = n,
                          .scores = s.scores,
                          .dp = s.dp,
                          .lse = head.lse,
                          .delta = head.delta,
                          .p = s.p,
                          .ds = s.ds});
    if (s.positions) s.positions->add_gradient(pair, s.ds, n);
    sum_rows_over_queries(band, {n, d_, r}, s.p, s.dout, s.dv + at);
    sum_rows_over_queries(band, {n, d_, r}, s.ds, s.q, s.dk + at);
    sum_rows_over_keys(band, {r, d_, n}, s.ds, s.keys + at, head.dq);
  }

  void add_keys_by_queries(const Block& pair, int64_t heads, Scratch<T, E>& s) const {
    const int64_t r = tile_padded(pair.queries), n = tile_padded(pair.keys), step = core_.block;
    for (int64_t key = 0; key < n; key += step) {
      const int64_t keys = std::min(step, n - key), at = (pair.first_key + key) * d_;
      Block part = pair;
      part.first_key += key, part.keys = std::min(step, pair.keys - key);
      const Band band = band_of(g_, part);
      if (!band.meets(keys, r)) continue;
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t query = 0; query < r; query += step) {
          part.first_query = pair.first_query + query;
          part.queries = std::min(step, pair.queries - query);
          block_gradients(part, query, key, r, h, heads, s);
        }
      }
      sum_over_queries(band, {keys, d_, r}, heads, s.p, s.dout, s.dv + at);
      sum_over_queries(band, {keys, d_, r}, heads, s.ds, s.q, s.dk + at);
    }
    const Band band = band_of(g_, pair);
    const E* const keys = s.keys_turned + pair.first_key * d_;
    for (int64_t h = 0; h < heads; ++h) {
      sum_over_keys(band, {d_, r, n}, keys, s.heads[h].ds_right, s.heads[h].dq);
    }
  }

  // p and ds of a block, from `query` and `key` of a tile with `all` queries on.
  void block_gradients(const Block& block, int64_t query, int64_t key, int64_t all, int64_t h,
                       int64_t heads, Scratch<T, E>& s) const {
    const int64_t r = tile_padded(block.queries), n = tile_padded(block.keys);
    const int64_t first_key = block.first_key * d_;
    const Band band = band_of(g_, block);
    if (!band.meets(n, r)) return;
    const auto& head = s.heads[h];
    const int64_t right = query * kPairWidth<E>, at = h * all + query;
    score_product(band, {n, r, d_}, s.keys + first_key, head.q_turned + right, all, s.scores);
    score_product(band, {n, r, d_}, s.values + first_key, head.dout_turned + right, all, s.dp);
    if (s.positions) s.positions->add(block, s.scores, r);
    score_gradient<T, E>({.geometry = g_,
                          .block = block,
                          .padded_queries = r,
                          .padded_keys = n,
                          .scores = s.scores,
                          .dp = s.dp,
                          .lse = head.lse + query,
                          .delta = head.delta + query,
                          .p = s.p + at,
                          .ds = s.ds + at,
                          .ds_right = head.ds_right + key * all + right,
                          .p_stride = heads * all,
                          .right_stride = all,
                          .keeps_ds = s.positions.has_value()});
    if (s.positions) s.positions->add_gradient(block, s.dp, r);
  }

  void write_keys(const Segment& segment, const Run& run, Scratch<T, E>& s) const {
    const int64_t first = run.first * kTile, row = segment.begin + first;
    const int64_t keys = std::min(segment.rows, run.last * kTile) - first;
    for (int64_t t = run.first; t < run.last && s.positions; ++t) {
      if (s.packed[t]) s.positions->finish_keys(segment, Keys(segment, t), s.dk + t * tile_);
    }
    for (const auto& [sums, out] : {std::pair(s.dk, dk_), std::pair(s.dv, dv_)}) {
      core_.unpack_rows(sums + first * d_, d_, out.at(row, run.kv_head), out.stride, keys, g_.size);
    }
  }

  const Context* ctx_;
  Geometry g_;
  int64_t d_, tile_;  // padded size, and elements of a tile's rows
  Heads<T> dout_, q_, k_, v_, out_, dq_, dk_, dv_;
  const A* lse_;  // (M,H)
  Slots<A> slots_;
  const AttentionCore<T, E>& core_ = core_of<T, E>();
};

// Adds the slots of each shared kv head, in order, and writes its dq.
template <typename T, typename E>
void merge_slots(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
                 const Plan& plan, const Slots<Acc<E>>& slots, const Backward<T, E>& backward) {
  using A = Acc<E>;
  std::vector<Run> shared;
  for (const auto& runs : plan.threads) {
    for (const Run& run : runs) {
      if (run.slot >= 0) shared.push_back(run);
    }
  }
  const auto same = [](const Run& a, const Run& b) {
    return a.segment == b.segment && a.kv_head == b.kv_head;
  };
  for (size_t i = 0; i < shared.size();) {
    size_t next = i + 1;
    while (next < shared.size() && same(shared[i], shared[next])) ++next;
    const Segment& segment = segments[static_cast<size_t>(shared[i].segment)];
    const int64_t tile = kTile * g.padded(), first = segment.skip / kTile;
    const int64_t tiles = tile_count(segment.queries);
    parallel_for(ctx, g.group(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        A* const total = slots.at(shared[i].slot, h);
        for (size_t other = i + 1; other < next; ++other) {
          const A* const part = slots.at(shared[other].slot, h);
          for (int64_t e = first * tile; e < tiles * tile; ++e) total[e] += part[e];
        }
        for (int64_t t = first; t < tiles; ++t) {
          backward.write_dq(segment, shared[i].kv_head * g.group() + h, t, total + t * tile);
        }
      }
    });
    i = next;
  }
}

// Each head sums over all of its queries in their order, so that threads do not change it.
template <typename T, typename E>
void sink_gradients(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
                    const balora_attention_backward& o) {
  using A = Acc<E>;
  const Heads<T> dout(o.dout), out(o.out);
  const A *sinks = data_of<A>(o.sinks), *lse = data_of<A>(o.lse);
  parallel_for(ctx, g.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      double sum = 0;
      for (const Segment& segment : segments) {
        for (int64_t tile = segment.skip / kTile; tile < tile_count(segment.queries); ++tile) {
          const Queries own(segment, tile);
          const int64_t row = segment.query(own.first), queries = own.count();
          A delta[kTile];
          core_of<T, E>().row_dots(dout.source(row, head, queries), out.source(row, head, queries),
                                   delta);
          for (int64_t i = 0; i < queries; ++i) {
            sum += std::exp(double{sinks[head]} - lse[(row + i) * g.heads + head]) * delta[i];
          }
        }
      }
      data_of<A>(o.dsinks)[head] = static_cast<A>(-sum);
    }
  });
}

template <typename T>
void clear_padding(const Geometry& g, const std::vector<Segment>& segments,
                   const balora_attention_backward& o) {
  for (const Segment& segment : segments) {
    const int64_t padding = segment.begin + segment.rows;
    clear_rows(Heads<T>(o.dq), g.heads, segment.query(std::max(segment.queries, segment.skip)),
               segment.query_stop);
    clear_rows(Heads<T>(o.dk), g.kv_heads, padding, segment.stop);
    clear_rows(Heads<T>(o.dv), g.kv_heads, padding, segment.stop);
  }
}

// `relative`: what adds to the scores, and gets gradients then; or null.
template <typename T, typename E>
void backward(Context* ctx, const balora_attention_backward& o, const Relative* relative,
              const RelativeGradients* gradients) {
  using A = Acc<E>;
  Geometry g = geometry_of(o);
  take_scale<E>(g, relative && relative->bias);
  const std::vector<Segment> segments = relative ? read_segments(*relative) : segments_of(o);
  clear_padding<T>(g, segments, o);
  const Plan plan = (relative ? plan_by_heads : make_plan)(g, segments, ctx->num_threads, true);
  const auto scratch_in = [&](Arena& arena) {
    return Scratch<T, E>(arena, g, plan.longest, relative, gradients);
  };
  const int64_t scratch_size = scratch_bytes(scratch_in) * plan.width();
  const int64_t size = tile_count(plan.longest) * kTile * g.padded();
  const int64_t slot_bytes = plan.slots * g.group() * size * static_cast<int64_t>(sizeof(A));
  char* memory = workspace<char>(ctx, scratch_size + slot_bytes);
  const Slots<A> slots{reinterpret_cast<A*>(memory + scratch_size), g.group(), size};
  const Backward<T, E> backward(ctx, g, o, slots);
  const auto last = static_cast<int64_t>(segments.size()) - 1;
  for_runs(ctx, plan, memory, scratch_in, [&](const Run& run, Scratch<T, E>& scratch) {
    backward.run(segments[static_cast<size_t>(run.segment)], run, scratch);
    if (scratch.positions && run.segment == last) scratch.positions->write_head();
  });
  merge_slots(ctx, g, segments, plan, slots, backward);
  if (o.dsinks) sink_gradients<T, E>(ctx, g, segments, o);
  ctx->implementation = named_core_of<T, E>().name;
}

}  // namespace
}  // namespace balora::attention

namespace balora {

int32_t attention_backward_kernel(Context* ctx, const balora_attention_backward& o) {
  using namespace attention;
  dispatch_tiles(o.q->dtype,
                 [&]<typename T, typename E>() { backward<T, E>(ctx, o, nullptr, nullptr); });
  return 0;
}

int32_t relative_attention_backward_kernel(Context* ctx,
                                           const balora_relative_attention_backward& o) {
  using namespace attention;
  const Relative& r = *o.r;
  auto plain = plain_of<balora_attention_backward>(r);
  plain.dout = o.dout, plain.out = o.out, plain.lse = o.lse;
  plain.dq = o.gradients->q, plain.dk = o.gradients->k, plain.dv = o.gradients->v;
  dispatch_tiles(r.q->dtype,
                 [&]<typename T, typename E>() { backward<T, E>(ctx, plain, &r, o.gradients); });
  return 0;
}

}  // namespace balora
