// Attention forward over unpadded segments: per tile of queries an online softmax over the tiles of
// keys that they see (Dao et al. 2022, FlashAttention), so scores live in one thread's tile only.
// Each row's log-sum-exp is kept for the backward. The heads of a group share the packed keys and
// values of their kv head. With relative positions, queries and keys may be of two sequences.
#include <limits>
#include <optional>

#include "kernels/cpu/attention/positions.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora::attention {
namespace {

// One thread's scratch. Packed tiles of keys and values fill as the queries reach them.
template <typename T, typename E>
struct Scratch {
  using A = Acc<E>;
  E *keys, *values, *q, *p;
  A *scores, *out, *highest, *total;
  uint8_t* packed;
  std::optional<Positions<T, E>> positions;

  Scratch(Arena& arena, const Geometry& g, int64_t longest, const Relative* relative) {
    const int64_t tiles = tile_count(longest), tile = kTile * g.padded();
    keys = arena.take<E>(tiles * tile);
    values = arena.take<E>(tiles * tile);
    q = arena.take<E>(tile);
    scores = arena.take<A>(kTile * kTile);
    p = in_place_or_taken<E>(arena, scores, kTile * kTile);
    out = arena.take<A>(tile);
    highest = arena.take<A>(kTile);
    total = arena.take<A>(kTile);
    packed = arena.take<uint8_t>(tiles);
    if (relative) positions.emplace(arena, g, *relative, nullptr, longest);
  }
};

template <typename T, typename E>
class Forward {
 public:
  using A = Acc<E>;

  Forward(const Context* ctx, const Geometry& g, const balora_attention_forward& o)
      : ctx_(ctx),
        g_(g),
        q_(o.q),
        k_(o.k),
        v_(o.v),
        out_(o.out),
        sinks_(data_of<A>(o.sinks)),
        lse_(data_of<A>(o.lse)) {}

  void run(const Segment& segment, const Run& run, Scratch<T, E>& scratch) const {
    std::fill(scratch.packed, scratch.packed + tile_count(segment.rows), uint8_t{0});
    if (scratch.positions) scratch.positions->take_head(run.kv_head);
    for (int64_t tile = run.first; tile < run.last && !is_stopped(ctx_); ++tile) {
      for (int64_t h = 0; h < g_.group(); ++h) {
        query_tile(segment, run, run.kv_head * g_.group() + h, tile, scratch);
      }
    }
  }

 private:
  void query_tile(const Segment& segment, const Run& run, int64_t head, int64_t tile,
                  Scratch<T, E>& scratch) const {
    const Queries own(segment, tile);
    const TileRange met = keys_of_queries(g_, segment, tile);
    for (int64_t first = own.first; first < own.last; first += core_.block) {
      Queries block = own;
      block.first = first, block.last = std::min(own.last, first + core_.block);
      query_block(segment, run.kv_head, head, met, block, scratch);
    }
  }

  void query_block(const Segment& segment, int64_t kv_head, int64_t head, const TileRange& met,
                   const Queries& own, Scratch<T, E>& scratch) const {
    const int64_t r = tile_padded(own.count()), d = g_.padded(), row = segment.query(own.first);
    core_.columns_right(q_.source(row, head, own.count()), scratch.q, r, d);
    scale_packed(g_, scratch.q, r * d);
    if (scratch.positions) scratch.positions->take_queries(segment, own, met);
    std::fill(scratch.out, scratch.out + r * d, A(0));
    constexpr A kNone = -std::numeric_limits<A>::infinity();
    const A sink = sinks_ ? sinks_[head] : kNone;
    std::fill(scratch.highest, scratch.highest + r, sink);
    std::fill(scratch.total, scratch.total + r, sink == kNone ? A(0) : A(1));
    // The last keys first: of a causal mask, those by the queries themselves, whose maxima mostly stay.
    for (int64_t key_tile = met.last - 1; key_tile >= met.first; --key_tile) {
      pack_keys(segment, kv_head, key_tile, scratch);
      const Keys keys(segment, key_tile);
      const int64_t at = keys.first * d, n = tile_padded(keys.count);
      const Block block{own.first, own.count(), keys.first, keys.count};
      const Band band = band_of(g_, block);
      score_product(band, {n, r, d}, scratch.keys + at, scratch.q, r, scratch.scores);
      if (scratch.positions) scratch.positions->add(block, scratch.scores, r);
      softmax<T, E>({.geometry = g_,
                     .block = block,
                     .padded_queries = r,
                     .padded_keys = n,
                     .padded_size = d,
                     .scores = scratch.scores,
                     .p = scratch.p,
                     .highest = scratch.highest,
                     .total = scratch.total,
                     .out = scratch.out});
      sum_over_keys(band, {d, r, n}, scratch.values + at, scratch.p, scratch.out);
    }
    finish(row, own.count(), head, scratch);
  }

  void pack_keys(const Segment& segment, int64_t kv_head, int64_t tile,
                 Scratch<T, E>& scratch) const {
    if (scratch.packed[tile]) return;
    scratch.packed[tile] = 1;
    const Keys keys(segment, tile);
    const int64_t d = g_.padded(), at = keys.first * d, n = tile_padded(keys.count);
    core_.rows_left(k_.source(keys.row, kv_head, keys.count), scratch.keys + at, n, d);
    core_.columns_left(v_.source(keys.row, kv_head, keys.count), scratch.values + at, n, d);
    if (scratch.positions) scratch.positions->take_keys(segment, keys);
  }

  void finish(int64_t row, int64_t queries, int64_t head, Scratch<T, E>& scratch) const {
    A lse[kTile];
    finish_softmax(queries, scratch.highest, scratch.total, lse);
    for (int64_t i = 0; i < queries; ++i) lse_[(row + i) * g_.heads + head] = lse[i];
    core_.unpack_columns(scratch.out, tile_padded(queries), scratch.total, out_.at(row, head),
                         out_.stride, queries, g_.size);
  }

  const Context* ctx_;
  Geometry g_;
  Heads<T> q_, k_, v_, out_;
  const A* sinks_;  // (H), or null
  A* lse_;
  const AttentionCore<T, E>& core_ = core_of<T, E>();
};

// `relative`: what adds to the scores, or null.
template <typename T, typename E>
void forward(Context* ctx, const balora_attention_forward& o, const Relative* relative) {
  using A = Acc<E>;
  Geometry g = geometry_of(o);
  take_scale<E>(g, relative && relative->bias);
  const std::vector<Segment> segments = relative ? read_segments(*relative) : segments_of(o);
  for (const Segment& segment : segments) {  // padding rows give zeros
    const int64_t from = segment.query(std::max(segment.queries, segment.skip));
    clear_rows(Heads<T>(o.out), g.heads, from, segment.query_stop);
    std::fill(data_of<A>(o.lse) + from * g.heads, data_of<A>(o.lse) + segment.query_stop * g.heads,
              A(0));
  }
  const Plan plan = (relative ? plan_by_heads : make_plan)(g, segments, ctx->num_threads, false);
  const auto scratch_in = [&](Arena& arena) {
    return Scratch<T, E>(arena, g, plan.longest, relative);
  };
  char* memory = workspace<char>(ctx, scratch_bytes(scratch_in) * plan.width());
  const Forward<T, E> forward(ctx, g, o);
  for_runs(ctx, plan, memory, scratch_in, [&](const Run& run, Scratch<T, E>& scratch) {
    forward.run(segments[static_cast<size_t>(run.segment)], run, scratch);
  });
  ctx->implementation = named_core_of<T, E>().name;
}

}  // namespace
}  // namespace balora::attention

namespace balora {

int32_t attention_forward_kernel(Context* ctx, const balora_attention_forward& o) {
  using namespace attention;
  dispatch_tiles(o.q->dtype, [&]<typename T, typename E>() { forward<T, E>(ctx, o, nullptr); });
  return 0;
}

int32_t relative_attention_forward_kernel(Context* ctx,
                                          const balora_relative_attention_forward& o) {
  using namespace attention;
  const Relative& r = *o.r;
  auto plain = plain_of<balora_attention_forward>(r);
  plain.out = o.out, plain.lse = o.lse;
  dispatch_tiles(r.q->dtype, [&]<typename T, typename E>() { forward<T, E>(ctx, plain, &r); });
  return 0;
}

}  // namespace balora
