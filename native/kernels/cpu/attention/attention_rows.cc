// The drivers of rows_bf16.h: attention.cc and attention_backward.cc for processors that multiply
// bf16 in vectors. A tile of queries goes from the last tile of keys that it meets to the first.
#include "kernels/cpu/attention/attention_rows.h"

#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/attention/attention_bf16.h"
#include "kernels/cpu/attention/attention_heads.h"
#include "kernels/cpu/attention/attention_slots.h"
#include "kernels/cpu/attention/rows_bf16.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora::attention::rows {

#ifndef BALORA_TILES
bool has(const Geometry&) {
  return false;
}
void forward(Context*, const Geometry&, const std::vector<Segment>&,
             const balora_attention_forward&) {}
void backward(Context*, const Geometry&, const std::vector<Segment>&,
              const balora_attention_backward&) {}
#else
namespace {

constexpr int64_t kLanes = 16;

// Rows as an operand: in place, or copied where a tile has fewer, or the size needs zeros.
Operand operand(const Source<bf16>& rows, int64_t d, bf16* copy) {
  if (rows.rows == kTile && rows.size == d) return {rows.data, rows.stride};
  lanes::rows_left(rows, copy, kTile, d);
  return {copy, d};
}

// The tile of keys, of those that a tile of queries meets, during whose products the next rows are
// asked for, and packed in the backward: the last that all queries see. -1: none.
int64_t asking_tile(const Geometry& g, const Queries& own, const Segment& segment,
                    const TileRange& met) {
  for (int64_t tile = met.first; tile < met.last; ++tile) {
    const Keys keys(segment, tile);
    if (is_whole(band_of(g, own.first, keys.first), own.count(), keys.count)) return tile;
  }
  return -1;
}

// All rows at once, for a tile of queries that has no products to ask during.
void ask_all(std::initializer_list<Cursor*> cursors) {
  for (int64_t i = 0; i < kTile; ++i) {
    for (Cursor* cursor : cursors) cursor->ask();
  }
}

// The head after one of a run, of the same or the next tile of queries.
struct Next {
  bool exists, same_tile;
  int64_t tile, head;
  Next(const Geometry& g, const Run& run, int64_t head_of_group, int64_t own, int64_t last)
      : same_tile(head_of_group + 1 < g.group()),
        tile(same_tile ? own : own + 1),
        head(run.kv_head * g.group() + (same_tile ? head_of_group + 1 : 0)) {
    exists = same_tile || tile < last;
  }
};

// ---- forward ------------------------------------------------------------------------------------

struct ForwardScratch {
  bf16 *keys, *values, *q, *p;
  float *out, *highest, *base_2, *total, *passed, *inverse, *lse;
  uint8_t* packed;

  ForwardScratch(Arena& arena, const Geometry& g, int64_t longest) {
    const int64_t tiles = tile_count(longest), tile = kTile * g.padded();
    for (bf16** packed_tiles : {&keys, &values}) *packed_tiles = arena.take<bf16>(tiles * tile);
    q = arena.take<bf16>(tile);
    p = arena.take<bf16>(kTile * kTile);
    out = arena.take<float>(tile);
    for (float** row : {&highest, &base_2, &inverse, &lse}) *row = arena.take<float>(kTile);
    for (float** lanes : {&total, &passed}) *lanes = arena.take<float>(kTile * kLanes);
    packed = arena.take<uint8_t>(tiles);
  }
};

class Forward {
 public:
  Forward(const Context* ctx, const Geometry& g, const balora_attention_forward& o)
      : ctx_(ctx), g_(g), q_(o.q), k_(o.k), v_(o.v), out_(o.out), lse_(data_of<float>(o.lse)) {}

  void run(const Segment& segment, const Run& run, const ForwardScratch& scratch) const {
    std::fill(scratch.packed, scratch.packed + tile_count(segment.rows), uint8_t{0});
    for (int64_t tile = run.first; tile < run.last && !is_stopped(ctx_); ++tile) {
      for (int64_t h = 0; h < g_.group(); ++h) query_tile(segment, run, h, tile, scratch);
    }
  }

 private:
  void query_tile(const Segment& segment, const Run& run, int64_t h, int64_t tile,
                  const ForwardScratch& scratch) const {
    const Queries own(segment, tile);
    const int64_t queries = own.count(), row = segment.query(own.first), d = g_.padded();
    if (queries == 0) return;
    const int64_t head = run.kv_head * g_.group() + h;
    SoftmaxRows t{.q = operand(q_.source(row, head, queries), d, scratch.q),
                  .rows = queries,
                  .size = d,
                  .scale = g_.scale,
                  .highest = scratch.highest,
                  .base_2 = scratch.base_2,
                  .total = scratch.total,
                  .passed = scratch.passed,
                  .p = scratch.p,
                  .out = scratch.out};
    start_softmax(t);
    const TileRange met = keys_of_queries(g_, segment, tile);
    Ahead ahead = ahead_of(segment, run, h, tile, scratch);
    const int64_t asking = asking_tile(g_, own, segment, met);
    if (asking < 0) {
      ask_all({&ahead.scores[0], &ahead.scores[1], &ahead.sums[0], &ahead.sums[1]});
    }
    // The last keys first: of a causal mask, those by the queries themselves.
    for (int64_t key_tile = met.last - 1; key_tile >= met.first; --key_tile) {
      pack_keys(segment, run.kv_head, key_tile, scratch);
      const Keys keys(segment, key_tile);
      const Band band = band_of(g_, own.first, keys.first);
      const bf16 *k = scratch.keys + keys.first * d, *v = scratch.values + keys.first * d;
      Ahead* const asked = key_tile == asking ? &ahead : nullptr;
      const bool is_first = key_tile == met.last - 1, is_last = key_tile == met.first;
      if (!is_whole(band, queries, keys.count) || !whole_softmax(t, k, asked)) {
        masked_softmax(t, k, band, keys.count, is_first);
      }
      if (is_last) finish(row, queries, head, t, scratch);
      sum_over_keys(t.p, v, d, band, queries, keys.count, t.out, is_first,
                    {is_last ? out_.at(row, head) : nullptr, out_.stride, g_.size, scratch.inverse},
                    asked);
    }
  }

  // The log-sum-exps of a tile, and what its sums are to be multiplied by.
  void finish(int64_t row, int64_t queries, int64_t head, const SoftmaxRows& t,
              const ForwardScratch& scratch) const {
    sum_lanes(t.total, scratch.inverse);
    Softmax<bf16>::finish(queries, t.highest, scratch.inverse, scratch.lse);
    for (int64_t i = 0; i < queries; ++i) lse_[(row + i) * g_.heads + head] = scratch.lse[i];
  }

  // The rows that the tile writes at its end, the queries of the run's next one, and the keys beside
  // those, which this is the first to meet.
  Ahead ahead_of(const Segment& segment, const Run& run, int64_t h, int64_t tile,
                 const ForwardScratch& scratch) const {
    Ahead ahead;
    for (Cursor* cursor : {&ahead.scores[0], &ahead.sums[0], &ahead.sums[1]}) {
      cursor->rest(scratch.p);
    }
    const Queries own(segment, tile);
    ahead.scores[1].start(
        out_.source(segment.query(own.first), run.kv_head * g_.group() + h, own.count()));
    const Next next(g_, run, h, tile, run.last);
    if (!next.exists) return ahead;
    const Queries queries(segment, next.tile);
    ahead.scores[0].start(q_.source(segment.query(queries.first), next.head, queries.count()));
    if (next.same_tile || scratch.packed[next.tile]) return ahead;
    const Keys keys(segment, next.tile);
    ahead.sums[0].start(k_.source(keys.row, run.kv_head, keys.count));
    ahead.sums[1].start(v_.source(keys.row, run.kv_head, keys.count));
    return ahead;
  }

  void pack_keys(const Segment& segment, int64_t kv_head, int64_t tile,
                 const ForwardScratch& scratch) const {
    if (scratch.packed[tile]) return;
    scratch.packed[tile] = 1;
    const Keys keys(segment, tile);
    const int64_t d = g_.padded(), at = keys.first * d;
    lanes::columns_right(k_.source(keys.row, kv_head, keys.count), scratch.keys + at, kTile, d);
    pack_rows(v_.source(keys.row, kv_head, keys.count), d, scratch.values + at);
  }

  const Context* ctx_;
  Geometry g_;
  Heads<bf16> q_, k_, v_, out_;
  float* lse_;
};

// ---- backward -----------------------------------------------------------------------------------

struct BackwardScratch {
  // B operands over d, d and keys.
  bf16 *keys_turned, *values_turned, *keys;
  bf16 *q_right[2], *dout_right[2];  // B operands over queries, of a tile and of the next
  float* dots;                       // lanes of the next tile's deltas
  bf16 *q, *dout;                    // copies, where rows cannot be read in place
  bf16 *p, *ds, *ds_rows;
  float *lse, *base_2, *delta;
  float *dq, *dk, *dv;
  uint8_t *packed, *summed;  // of each tile of keys: whether it is packed, and has sums

  BackwardScratch(Arena& arena, const Geometry& g, int64_t longest) {
    const int64_t tiles = tile_count(longest), tile = kTile * g.padded();
    for (bf16** all : {&keys_turned, &values_turned, &keys}) *all = arena.take<bf16>(tiles * tile);
    for (bf16** one : {&q, &dout, &q_right[0], &q_right[1], &dout_right[0], &dout_right[1]}) {
      *one = arena.take<bf16>(tile);
    }
    dots = arena.take<float>(kTile * kLanes);
    for (bf16** square : {&p, &ds, &ds_rows}) *square = arena.take<bf16>(kTile * kTile);
    for (float** row : {&lse, &base_2, &delta}) *row = arena.take<float>(kTile);
    dq = arena.take<float>(tile);
    for (float** sums : {&dk, &dv}) *sums = arena.take<float>(tiles * tile);
    for (uint8_t** flags : {&packed, &summed}) *flags = arena.take<uint8_t>(tiles);
  }
};

class Backward {
 public:
  Backward(const Context* ctx, const Geometry& g, const balora_attention_backward& o,
           const Slots<float>& slots)
      : ctx_(ctx),
        g_(g),
        dout_(o.dout),
        q_(o.q),
        k_(o.k),
        v_(o.v),
        out_(o.out),
        dq_(o.dq),
        dk_(o.dk),
        dv_(o.dv),
        lse_(data_of<float>(o.lse)),
        slots_(slots) {
    std::fill(scale_, scale_ + kTile, static_cast<float>(g.scale));
    std::fill(ones_, ones_ + kTile, 1.0f);
  }

  void run(const Segment& segment, const Run& run, const BackwardScratch& s) const {
    const int64_t tiles = tile_count(segment.rows);
    for (uint8_t* flags : {s.packed, s.summed}) std::fill(flags, flags + tiles, uint8_t{0});
    Turn turn;
    for (int64_t t = segment.skip / kTile; t < tiles && !is_stopped(ctx_); ++t) {
      for (int64_t h = 0; h < g_.group(); ++h) query_tile(segment, run, h, t, s, turn);
    }
    write_keys(segment, run, s);
  }

  // Stores the sums of a query tile of a head as rows of dq.
  void write_dq(const Segment& segment, int64_t head, int64_t tile, const float* sums) const {
    const Queries own(segment, tile);
    if (own.count() == 0) return;
    write_rows(sums, g_.padded(), own.count(),
               {dq_.at(segment.query(own.first), head), dq_.stride, g_.size, scale_});
  }

 private:
  // The operands over queries: those of the tile in progress are at `index`, and the next tile's go
  // to the other place, where `packed` says that they are already.
  struct Turn {
    int64_t index = 0;
    bool packed = false;
  };

  void query_tile(const Segment& segment, const Run& run, int64_t h, int64_t tile,
                  const BackwardScratch& s, Turn& turn) const {
    turn.index = 1 - turn.index;
    const bool packed = std::exchange(turn.packed, false);
    const int64_t d = g_.padded(), head = run.kv_head * g_.group() + h;
    float* const sums = run.slot < 0 ? s.dq : slots_.at(run.slot, h) + tile * kTile * d;
    const TileRange met = keys_of_queries(g_, segment, tile);
    const TileRange own_keys{std::max(met.first, run.first), std::min(met.last, run.last)};
    const Queries own(segment, tile);
    if (own_keys.count() == 0) {
      std::fill(sums, sums + kTile * d, 0.0f);
      if (run.slot < 0) write_dq(segment, head, tile, sums);
      return;
    }
    const int64_t queries = own.count(), row = segment.query(own.first);
    const QueryRows own_rows = query_rows(segment, tile, head);
    const GradientRows t{.q = operand(own_rows.q, d, s.q),
                         .dout = operand(own_rows.dout, d, s.dout),
                         .rows = queries,
                         .size = d,
                         .scale = g_.scale,
                         .lse = s.lse,
                         .delta = s.delta,
                         .base_2 = s.base_2,
                         .p = s.p,
                         .ds = s.ds,
                         .ds_rows = s.ds_rows};
    bf16 *const q_right = s.q_right[turn.index], *const dout_right = s.dout_right[turn.index];
    if (packed) {
      sum_lanes(s.dots, s.delta);
    } else {
      pack_rows(own_rows.q, d, q_right);
      pack_rows(own_rows.dout, d, dout_right);
      row_dots(own_rows.dout, own_rows.out, s.delta);
    }
    read_lse(row, queries, head, s);
    start_gradient(t);
    const Next next(g_, run, h, tile, tile_count(segment.rows));
    const QueryRows next_rows =
        next.exists ? query_rows(segment, next.tile, next.head) : QueryRows{};
    Ahead ahead = ahead_of(segment, run, next, next_rows, s);
    const int64_t other = 1 - turn.index;
    const ComingRows next_q{next_rows.q, s.q_right[other], {}, nullptr};
    const ComingRows next_dout{next_rows.dout, s.dout_right[other], next_rows.out, s.dots};
    const int64_t asking = asking_tile(g_, own, segment, own_keys);
    if (asking < 0) {
      ask_all({&ahead.scores[0], &ahead.scores[1], &ahead.gradients[0], &ahead.gradients[1],
               &ahead.sums[0], &ahead.sums[1]});
    }
    const bool is_final = tile + 1 == tile_count(segment.rows) && h + 1 == g_.group();
    for (int64_t key_tile = own_keys.last - 1; key_tile >= own_keys.first; --key_tile) {
      const Keys keys(segment, key_tile);
      pack_keys(keys, run.kv_head, key_tile, s);
      const Band band = band_of(g_, own.first, keys.first);
      const int64_t at = keys.first * d;
      Ahead* const asked = key_tile == asking ? &ahead : nullptr;
      if (!is_whole(band, queries, keys.count) ||
          !whole_gradient(t, s.keys_turned + at, s.values_turned + at, asked)) {
        masked_gradient(t, s.keys_turned + at, s.values_turned + at, band, keys.count);
      }
      const bool is_last = key_tile == own_keys.first && run.slot < 0;
      sum_over_keys(t.ds_rows, s.keys + at, d, band, queries, keys.count, sums,
                    key_tile == own_keys.last - 1,
                    {is_last ? dq_.at(row, head) : nullptr, dq_.stride, g_.size, scale_}, asked);
      if (is_final) {
        ahead.keys[0].start(dv_.source(keys.row, run.kv_head, keys.count));
        ahead.keys[1].start(dk_.source(keys.row, run.kv_head, keys.count));
      }
      const bool is_first = !std::exchange(s.summed[key_tile], uint8_t{1});
      const bool packs = asked && can_pack_beside(next_rows.q);
      sum_over_queries(t.p, dout_right, d, band, queries, keys.count, s.dv + at, is_first,
                       is_final ? &ahead.keys[0] : nullptr, packs ? &next_q : nullptr);
      sum_over_queries(t.ds, q_right, d, band, queries, keys.count, s.dk + at, is_first,
                       is_final ? &ahead.keys[1] : nullptr, packs ? &next_dout : nullptr);
      if (packs) turn.packed = true;
    }
  }

  // The rows of a tile of queries in the operands; none of no tile.
  struct QueryRows {
    Source<bf16> q{}, dout{}, out{}, dq{};
  };
  QueryRows query_rows(const Segment& segment, int64_t tile, int64_t head) const {
    const Queries queries(segment, tile);
    const int64_t row = segment.query(queries.first), rows = queries.count();
    return {q_.source(row, head, rows), dout_.source(row, head, rows), out_.source(row, head, rows),
            dq_.source(row, head, rows)};
  }

  void read_lse(int64_t row, int64_t queries, int64_t head, const BackwardScratch& s) const {
    for (int64_t i = 0; i < queries; ++i) s.lse[i] = lse_[(row + i) * g_.heads + head];
    std::fill(s.lse + queries, s.lse + kTile, 0.0f);
  }

  // The rows of the run's next queries, and the keys beside those, which they are the first to meet.
  Ahead ahead_of(const Segment& segment, const Run& run, const Next& next, const QueryRows& rows,
                 const BackwardScratch& s) const {
    Ahead ahead;
    for (Cursor* cursor : {&ahead.scores[0], &ahead.scores[1], &ahead.gradients[0],
                           &ahead.gradients[1], &ahead.sums[0], &ahead.sums[1]}) {
      cursor->rest(s.p);
    }
    if (!next.exists) return ahead;
    ahead.scores[0].start(rows.q);
    ahead.scores[1].start(rows.dout);
    ahead.gradients[0].start(rows.out);
    ahead.gradients[1].start(rows.dq);
    if (next.same_tile || next.tile < run.first || next.tile >= run.last || s.packed[next.tile]) {
      return ahead;
    }
    const Keys keys(segment, next.tile);
    ahead.sums[0].start(k_.source(keys.row, run.kv_head, keys.count));
    ahead.sums[1].start(v_.source(keys.row, run.kv_head, keys.count));
    return ahead;
  }

  void pack_keys(const Keys& keys, int64_t kv_head, int64_t tile, const BackwardScratch& s) const {
    if (s.packed[tile]) return;
    s.packed[tile] = 1;
    const int64_t d = g_.padded(), at = keys.first * d;
    const Source<bf16> k = k_.source(keys.row, kv_head, keys.count);
    lanes::columns_right(k, s.keys_turned + at, kTile, d);
    lanes::columns_right(v_.source(keys.row, kv_head, keys.count), s.values_turned + at, kTile, d);
    pack_rows(k, d, s.keys + at);
  }

  void write_keys(const Segment& segment, const Run& run, const BackwardScratch& s) const {
    const int64_t d = g_.padded();
    for (int64_t tile = run.first; tile < run.last; ++tile) {
      const Keys keys(segment, tile);
      float *dk = s.dk + keys.first * d, *dv = s.dv + keys.first * d;
      if (!s.summed[tile]) {  // no query sees these
        for (float* sums : {dk, dv}) std::fill(sums, sums + kTile * d, 0.0f);
      }
      write_rows(dk, d, keys.count, {dk_.at(keys.row, run.kv_head), dk_.stride, g_.size, scale_});
      write_rows(dv, d, keys.count, {dv_.at(keys.row, run.kv_head), dv_.stride, g_.size, ones_});
    }
  }

  const Context* ctx_;
  Geometry g_;
  Heads<bf16> dout_, q_, k_, v_, out_, dq_, dk_, dv_;
  const float* lse_;
  Slots<float> slots_;
  float scale_[kTile], ones_[kTile];  // factors of rows
};

}  // namespace

bool has(const Geometry& g) {
  return tile_gemm_has_bf16() && !tiles_use_amx() && g.softcap == 0;
}

void forward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
             const balora_attention_forward& o) {
  const Plan plan = make_plan(g, segments, ctx->num_threads, false);
  char* memory = workspace<char>(ctx, scratch_bytes<ForwardScratch>(g, plan) * plan.width());
  const Forward forward(ctx, g, o);
  for_runs<ForwardScratch>(ctx, g, plan, memory, [&](const Run& run, const ForwardScratch& s) {
    forward.run(segments[static_cast<size_t>(run.segment)], run, s);
  });
}

void backward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
              const balora_attention_backward& o) {
  backward_runs<BackwardScratch, float>(
      ctx, g, segments, [&](const Slots<float>& slots) { return Backward(ctx, g, o, slots); });
}
#endif

}  // namespace balora::attention::rows
