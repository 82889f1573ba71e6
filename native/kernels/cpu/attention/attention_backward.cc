// Attention backward: probabilities come back from q, k and the saved log-sum-exp, tile by tile.
//   delta = rowsum(dout * out)
//   dp = dout v^T
//   ds = p (dp - delta) * scale
//   dv = p^T dout
//   dk = ds^T q
//   dq = ds k
// A thread owns runs of key tiles, so dk and dv are its own; dq sums over key tiles, and where
// threads share a kv head each keeps its part in a slot, added in order afterwards. No atomics: a
// thread count always gives the same bits. Scores are computed transposed (keys x queries), which
// hands p and ds to the products over queries as they are. A tile of queries at a time: its packed
// copies and its dq stay in the nearest cache, and what the next one reads is asked for meanwhile.
#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora::attention {
namespace {

// Rows of heads: (row, head) starts at data + row * stride + head * size.
template <typename T>
struct Heads {
  T* data;
  int64_t stride, size;
  explicit Heads(const View* view)
      : data(data_of<T>(view)), stride(view->stride[0]), size(view->shape[2]) {}
  T* at(int64_t row, int64_t head) const { return data + row * stride + head * size; }
  Source<T> source(int64_t row, int64_t head, int64_t rows) const {
    return {at(row, head), stride, rows, size};
  }
};

template <typename T, typename A>
struct Operands {
  Heads<T> dout, q, k, v, out, dq, dk, dv;
  const A* lse;  // (M,H)
};

// One thread's scratch: the packed keys and values of a run and their sums, and a tile of queries.
template <typename E>
struct Scratch {
  using A = Acc<E>;
  E *keys, *values, *keys_transposed;            // A operands: (k,d), (k,d), (d,k) a tile
  E *q, *q_transposed, *dout, *dout_transposed;  // B operands: (r,d), (d,r)
  E *p, *ds, *ds_right;
  A *scores, *dp, *dk, *dv, *dq, *lse, *delta;  // dq: (d,r)
  uint8_t* packed_keys;

  Scratch(Arena& arena, const Geometry& g, int64_t longest) {
    const int64_t tiles = tile_count(longest), tile = kTile * g.padded();
    for (E** operand : {&keys, &values, &keys_transposed}) *operand = arena.take<E>(tiles * tile);
    for (E** operand : {&q, &q_transposed, &dout, &dout_transposed}) {
      *operand = arena.take<E>(tile);
    }
    for (A** square : {&scores, &dp}) *square = arena.take<A>(kTile * kTile);
    p = in_place_or_taken<E>(arena, scores);
    ds = in_place_or_taken<E>(arena, dp);
    ds_right = std::is_same_v<E, bf16> ? arena.take<E>(kTile * kTile) : ds;
    for (A** sum : {&dk, &dv}) *sum = arena.take<A>(tiles * tile);
    dq = arena.take<A>(tile);
    for (A** row : {&lse, &delta}) *row = arena.take<A>(kTile);
    packed_keys = arena.take<uint8_t>(tiles);
  }
};

template <typename T, typename E>
class Backward {
 public:
  using A = Acc<E>;

  // slots: (slot, head of the group, tile, d, r) of dq, for the runs that share their kv head.
  Backward(const Geometry& g, const Operands<T, A>& operands, A* slots, int64_t slot_size)
      : g_(g), o_(operands), slots_(slots), slot_size_(slot_size) {}

  void run(const Segment& segment, const Run& run, const Scratch<E>& s) const {
    const int64_t tiles = tile_count(segment.rows), tile = kTile * g_.padded();
    std::fill(s.packed_keys, s.packed_keys + tiles, uint8_t{0});
    std::fill(s.dk + run.first * tile, s.dk + run.last * tile, A(0));
    std::fill(s.dv + run.first * tile, s.dv + run.last * tile, A(0));
    for (int64_t t = segment.skip / kTile; t < tiles; ++t) {
      for (int64_t h = 0; h < g_.group(); ++h) {
        query_tile(segment, run, h, t, s);
        if (run.slot < 0) {
          write_dq(segment, run.kv_head * g_.group() + h, t, s.dq);
        } else {
          std::copy(s.dq, s.dq + tile, slot(run.slot, h) + t * tile);
        }
      }
    }
    write_keys(segment, run, s);
  }

  A* slot(int64_t index, int64_t h) const { return slots_ + (index * g_.group() + h) * slot_size_; }

  // Stores the sums (d,r) of a query tile of a head as rows of dq.
  void write_dq(const Segment& segment, int64_t head, int64_t tile, const A* sums) const {
    const Queries own(segment, tile);
    if (own.count() == 0) return;
    Unpacking<T>::columns(sums, tile_padded(own.count()), o_.dq.at(segment.query(own.first), head),
                          o_.dq.stride, own.count(), g_.size);
  }

 private:
  using Ahead = RowsAhead<T, 4>;

  // Returns the rows that the tile of queries after this one reads and writes.
  Ahead ahead_of(const Segment& segment, int64_t kv_head, int64_t h, int64_t tile,
                 int64_t products) const {
    const bool more = h + 1 < g_.group();
    const int64_t head = kv_head * g_.group() + (more ? h + 1 : 0);
    const Queries own(segment, more ? tile : tile + 1);
    const int64_t row = segment.query(own.first), rows = own.count();
    if (rows == 0) return {{}, products};
    return {{o_.q.source(row, head, rows), o_.dout.source(row, head, rows),
             o_.out.source(row, head, rows), o_.dq.source(row, head, rows)},
            products};
  }

  void query_tile(const Segment& segment, const Run& run, int64_t h, int64_t tile,
                  const Scratch<E>& s) const {
    std::fill(s.dq, s.dq + kTile * g_.padded(), A(0));
    const TileRange met = keys_of_queries(g_, segment, tile);
    const int64_t first = std::max(met.first, run.first), last = std::min(met.last, run.last);
    if (first >= last) return;
    pack_queries(segment, run.kv_head * g_.group() + h, tile, s);
    Ahead ahead = ahead_of(segment, run.kv_head, h, tile, kProducts * (last - first));
    for (int64_t key_tile = first; key_tile < last; ++key_tile) {
      pack_keys(segment, run.kv_head, key_tile, s);
      tile_pair(segment, key_tile, tile, s, ahead);
    }
  }

  void pack_keys(const Segment& segment, int64_t kv_head, int64_t tile, const Scratch<E>& s) const {
    if (s.packed_keys[tile]) return;
    s.packed_keys[tile] = 1;
    const int64_t first = tile * kTile, keys = std::min(kTile, segment.rows - first);
    const int64_t n = tile_padded(keys), d = g_.padded(), at = first * d;
    const Source<T> k = o_.k.source(segment.begin + first, kv_head, keys);
    const Source<T> v = o_.v.source(segment.begin + first, kv_head, keys);
    Packing<T, E>::rows_left(k, s.keys + at, n, d);
    Packing<T, E>::columns_left(k, s.keys_transposed + at, n, d);
    Packing<T, E>::rows_left(v, s.values + at, n, d);
  }

  void pack_queries(const Segment& segment, int64_t head, int64_t tile, const Scratch<E>& s) const {
    const Queries own(segment, tile);
    const int64_t queries = own.count(), r = tile_padded(queries), d = g_.padded();
    const int64_t row = segment.query(own.first);
    const Source<T> q = o_.q.source(row, head, queries);
    const Source<T> dout = o_.dout.source(row, head, queries);
    Packing<T, E>::rows_right(q, s.q, r, d);
    Packing<T, E>::columns_right(q, s.q_transposed, r, d);
    Packing<T, E>::rows_right(dout, s.dout, r, d);
    Packing<T, E>::columns_right(dout, s.dout_transposed, r, d);
    Unpacking<T>::row_dots(dout, o_.out.source(row, head, queries), s.delta);
    for (int64_t i = 0; i < queries; ++i) s.lse[i] = o_.lse[(row + i) * g_.heads + head];
  }

  static constexpr int64_t kProducts = 5;  // of a pair of tiles

  void tile_pair(const Segment& segment, int64_t key_tile, int64_t query_tile, const Scratch<E>& s,
                 Ahead& ahead) const {
    const Queries own(segment, query_tile);
    const int64_t first_key = key_tile * kTile;
    const int64_t keys = std::min(kTile, segment.rows - first_key), n = tile_padded(keys);
    const int64_t r = tile_padded(own.count());
    const int64_t d = g_.padded(), k_at = first_key * d;
    const Band band = band_of(g_, own.first, first_key);
    ahead.ask();
    score_product(band, {n, r, d}, s.keys + k_at, s.q_transposed, s.scores);
    ahead.ask();
    score_product(band, {n, r, d}, s.values + k_at, s.dout_transposed, s.dp);
    ScoreGradient<E>::run({.geometry = g_,
                           .segment_rows = segment.rows,
                           .first_query = own.first,
                           .queries = own.count(),
                           .first_key = first_key,
                           .keys = keys,
                           .padded_queries = r,
                           .padded_keys = n,
                           .scores = s.scores,
                           .dp = s.dp,
                           .lse = s.lse,
                           .delta = s.delta,
                           .p = s.p,
                           .ds = s.ds,
                           .ds_right = s.ds_right});
    ahead.ask();
    sum_over_queries(band, {n, d, r}, s.p, s.dout, s.dv + k_at);
    ahead.ask();
    sum_over_queries(band, {n, d, r}, s.ds, s.q, s.dk + k_at);
    ahead.ask();
    sum_over_keys(band, {d, r, n}, s.keys_transposed + k_at, s.ds_right, s.dq);
  }

  void write_keys(const Segment& segment, const Run& run, const Scratch<E>& s) const {
    const int64_t first = run.first * kTile, d = g_.padded();
    const int64_t keys = std::min(segment.rows, run.last * kTile) - first;
    const int64_t row = segment.begin + first;
    Unpacking<T>::rows(s.dk + first * d, d, o_.dk.at(row, run.kv_head), o_.dk.stride, keys,
                       g_.size);
    Unpacking<T>::rows(s.dv + first * d, d, o_.dv.at(row, run.kv_head), o_.dv.stride, keys,
                       g_.size);
  }

  Geometry g_;
  Operands<T, A> o_;
  A* slots_;
  int64_t slot_size_;
};

// Adds the slots of each shared kv head, in order, and writes its dq.
template <typename T, typename E>
void merge_slots(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
                 const Plan& plan, const Backward<T, E>& backward) {
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
    const int64_t tiles = tile_count(segment.rows);
    parallel_for(ctx, g.group(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        auto* total = backward.slot(shared[i].slot, h);
        for (size_t other = i + 1; other < next; ++other) {
          const auto* part = backward.slot(shared[other].slot, h);
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

template <typename T>
void clear_rows(const Heads<T>& heads, int64_t count, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    std::fill(heads.at(row, 0), heads.at(row, count), T{});
  }
}

template <typename T, typename E>
void backward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
              const Operands<T, Acc<E>>& operands) {
  using A = Acc<E>;
  for (const Segment& segment : segments) {
    const int64_t padding = segment.begin + segment.rows;
    clear_rows(operands.dq, g.heads, segment.query(std::max(segment.rows, segment.skip)),
               segment.query(segment.stop - segment.begin));
    clear_rows(operands.dk, g.kv_heads, padding, segment.stop);
    clear_rows(operands.dv, g.kv_heads, padding, segment.stop);
  }
  const Plan plan = make_plan(g, segments, ctx->num_threads, true);
  const int64_t scratch_size = scratch_bytes<Scratch<E>>(g, plan) * plan.width();
  const int64_t slot_size = tile_count(plan.longest) * kTile * g.padded();
  const int64_t slot_bytes = plan.slots * g.group() * slot_size * static_cast<int64_t>(sizeof(A));
  char* memory = workspace<char>(ctx, scratch_size + slot_bytes);
  A* slots = reinterpret_cast<A*>(memory + scratch_size);
  const Backward<T, E> backward(g, operands, slots, slot_size);
  for_runs<Scratch<E>>(ctx, g, plan, memory, [&](const Run& run, const Scratch<E>& scratch) {
    backward.run(segments[static_cast<size_t>(run.segment)], run, scratch);
  });
  merge_slots(ctx, g, segments, plan, backward);
}

}  // namespace
}  // namespace balora::attention

namespace balora {

int32_t attention_backward_kernel(Context* ctx, const balora_attention_backward& o) {
  using namespace attention;
  const Geometry g = geometry_of(o);
  const std::vector<Segment> segments = segments_of(o);
  dispatch_tiles(o.q->dtype, [&]<typename T, typename E>() {
    const Operands<T, Acc<E>> operands{.dout = Heads<T>(o.dout),
                                       .q = Heads<T>(o.q),
                                       .k = Heads<T>(o.k),
                                       .v = Heads<T>(o.v),
                                       .out = Heads<T>(o.out),
                                       .dq = Heads<T>(o.dq),
                                       .dk = Heads<T>(o.dk),
                                       .dv = Heads<T>(o.dv),
                                       .lse = data_of<Acc<E>>(o.lse)};
    attention::backward<T, E>(ctx, g, segments, operands);
  });
  return 0;
}

}  // namespace balora
