// The backward on AMX: 64 keys by the queries of a tile and of up to four heads that share them.
// Scores and their gradients are made in squares of 32, which stay in the first-level cache; dk and
// dv are loaded and stored once for all of the heads.
#include <algorithm>

#include "kernels/cpu/attention/attention_blocks.h"
#include "kernels/cpu/attention/attention_slots.h"
#include "kernels/cpu/attention/x86/attention_bf16.h"
#include "kernels/cpu/products/x86/amx_blocks.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora::attention::x86 {

namespace {

using balora::amx::add_step;
using balora::amx::begin_block;
using balora::amx::end_block;

constexpr int64_t kBlock = balora::amx::kSide;  // queries, or keys
constexpr int64_t kBlocks = kTile / kBlock;
constexpr int64_t kSquare = kBlock * kBlock;
constexpr int64_t kMostHeads = 4;  // beside each other: their operands stay in L2

// One thread's scratch. Packed tiles of keys fill as the queries reach them.
struct Scratch {
  // A head's operands over queries and what a block of keys makes of them, by blocks of 32 queries.
  struct Head {
    bf16 *q, *dout;                // (32,d) in pair order
    bf16 *q_turned, *dout_turned;  // (d,32) likewise
    bf16 *p, *ds;                  // (32,32)
    bf16* ds_right;                // (64,32) in pair order
    float *lse, *delta;            // (64)
    float* dq;                     // (d,32)
  };
  bf16 *keys, *values, *keys_turned;  // of a tile (n,d), (n,d) and (d,n)
  float *dk, *dv;                     // (n,d)
  float *scores, *dp;                 // (32,32)
  Head heads[kMostHeads];
  uint8_t* packed;

  Scratch(Arena& arena, const Geometry& g, int64_t longest) {
    const int64_t tiles = tile_count(longest), tile = kTile * g.padded();
    for (bf16** operand : {&keys, &values, &keys_turned}) *operand = arena.take<bf16>(tiles * tile);
    for (float** sums : {&dk, &dv}) *sums = arena.take<float>(tiles * tile);
    for (float** square : {&scores, &dp}) *square = arena.take<float>(kSquare);
    for (int64_t h = 0; h < std::min(kMostHeads, g.group()); ++h) {
      Head& head = heads[h];
      for (bf16** operand : {&head.q, &head.dout, &head.q_turned, &head.dout_turned}) {
        *operand = arena.take<bf16>(tile);
      }
      for (bf16** squares : {&head.p, &head.ds}) *squares = arena.take<bf16>(kBlock * kTile);
      head.ds_right = arena.take<bf16>(kTile * kTile);
      head.lse = arena.take<float>(kTile), head.delta = arena.take<float>(kTile);
      head.dq = arena.take<float>(tile);
    }
    packed = arena.take<uint8_t>(tiles);
  }
};

class Backward {
 public:
  Backward(const Context* ctx, const Geometry& g, const balora_attention_backward& o,
           const Slots<float>& slots)
      : ctx_(ctx),
        g_(g),
        d_(g.padded()),
        dout_(o.dout),
        q_(o.q),
        k_(o.k),
        v_(o.v),
        out_(o.out),
        dq_(o.dq),
        dk_(o.dk),
        dv_(o.dv),
        lse_(data_of<float>(o.lse)),
        slots_(slots) {}

  void run(const Segment& segment, const Run& run, const Scratch& s) const {
    const int64_t tiles = tile_count(segment.rows), tile = kTile * d_;
    std::fill(s.packed, s.packed + tiles, uint8_t{0});
    for (float* sums : {s.dk, s.dv})
      std::fill(sums + run.first * tile, sums + run.last * tile, 0.0f);
    for (int64_t t = segment.skip / kTile; t < tiles && !is_stopped(ctx_); ++t) {
      for (int64_t first = 0; first < g_.group(); first += kMostHeads) {
        query_tile(segment, run, {first, std::min(first + kMostHeads, g_.group())}, t, s);
      }
    }
    write_keys(segment, run, s);
  }

  // Stores the sums of a query tile of a head as rows of dq.
  void write_dq(const Segment& segment, int64_t head, int64_t tile, const float* sums) const {
    const Queries own(segment, tile);
    for (int64_t first = 0; first < own.count(); first += kBlock, sums += kBlock * d_) {
      unpack_columns(sums, kBlock, nullptr, dq_.at(segment.query(own.first + first), head),
                     dq_.stride, std::min(kBlock, own.count() - first), g_.size);
    }
  }

 private:
  // Some heads of a group.
  struct HeadRange {
    int64_t first, last;
    int64_t count() const { return last - first; }
  };

  // A pair of tiles, and the blocks of 32 keys that each block of 32 queries meets.
  struct Pair {
    int64_t first_key, keys, key_blocks;
    int64_t first_query, queries, blocks;  // of queries
    TileRange met[kBlocks];

    bool meets(int64_t queries_block, int64_t keys_block) const {
      const TileRange& range = met[queries_block];
      return range.first <= keys_block && keys_block < range.last;
    }
    // Whether any of them does.
    bool meets(int64_t keys_block) const {
      for (int64_t queries = 0; queries < blocks; ++queries) {
        if (meets(queries, keys_block)) return true;
      }
      return false;
    }
  };

  Pair pair_of(const Segment& segment, const Queries& own, int64_t key_tile) const {
    const Keys keys(segment, key_tile);
    Pair pair{.first_key = keys.first,
              .keys = keys.count,
              .key_blocks = tile_padded(keys.count) / kBlock,
              .first_query = own.first,
              .queries = own.count(),
              .blocks = tile_padded(own.count()) / kBlock,
              .met = {}};
    for (int64_t block = 0; block < pair.blocks; ++block) {
      const int64_t first = own.first + block * kBlock, last = std::min(first + kBlock, own.last);
      const Columns seen =
          clip(g_.first_key(first), g_.last_key(last - 1, segment.rows), keys.first, keys.count);
      pair.met[block] = {seen.first / kBlock, tile_padded(seen.last) / kBlock};
      if (seen.first >= seen.last) pair.met[block] = {0, 0};
    }
    return pair;
  }

  void query_tile(const Segment& segment, const Run& run, const HeadRange& heads, int64_t tile,
                  const Scratch& s) const {
    const TileRange met = keys_of_queries(g_, segment, tile);
    const int64_t first = std::max(met.first, run.first), last = std::min(met.last, run.last);
    const Queries own(segment, tile);
    const bool any = first < last && own.count() > 0;
    bool begun[kBlocks] = {};
    const auto sums_of = [&](int64_t h) {
      return run.slot < 0 ? s.heads[h].dq
                          : slots_.at(run.slot, heads.first + h) + tile * kTile * d_;
    };
    if (any) pack_queries(segment, run, heads, own, s);
    for (int64_t key_tile = first; any && key_tile < last; ++key_tile) {
      pack_keys(segment, run.kv_head, key_tile, s);
      const Pair pair = pair_of(segment, own, key_tile);
      for (int64_t keys = 0; keys < pair.key_blocks; ++keys) {
        if (!pair.meets(keys)) continue;
        gradients(segment, pair, heads.count(), keys, s);
        add_keys(pair, heads.count(), keys, s);
      }
      for (int64_t h = 0; h < heads.count(); ++h) {
        add_queries(pair, s.heads[h], begun, s, sums_of(h));
      }
      for (int64_t block = 0; block < pair.blocks; ++block) {
        begun[block] |= pair.met[block].count() > 0;
      }
    }
    for (int64_t h = 0; h < heads.count(); ++h) {
      float* const dq = sums_of(h);
      for (int64_t block = 0; block < kBlocks; ++block) {
        if (!begun[block]) std::fill_n(dq + block * kBlock * d_, kBlock * d_, 0.0f);
      }
      if (run.slot < 0) {
        write_dq(segment, run.kv_head * g_.group() + heads.first + h, tile, dq);
      }
    }
  }

  void pack_queries(const Segment& segment, const Run& run, const HeadRange& heads,
                    const Queries& own, const Scratch& s) const {
    for (int64_t h = 0; h < heads.count(); ++h) {
      const Scratch::Head& to = s.heads[h];
      const int64_t head = run.kv_head * g_.group() + heads.first + h;
      for (int64_t first = 0; first < own.count(); first += kBlock) {
        const int64_t row = segment.query(own.first + first), at = first * d_;
        const int64_t rows = std::min(kBlock, own.count() - first);
        const Source<bf16> q = q_.source(row, head, rows), dout = dout_.source(row, head, rows);
        rows_right(q, to.q + at, kBlock, d_);
        columns_right(q, to.q_turned + at, kBlock, d_);
        rows_right(dout, to.dout + at, kBlock, d_);
        columns_right(dout, to.dout_turned + at, kBlock, d_);
        row_dots(dout, out_.source(row, head, rows), to.delta + first);
        for (int64_t i = 0; i < rows; ++i) to.lse[first + i] = lse_[(row + i) * g_.heads + head];
      }
    }
  }

  void pack_keys(const Segment& segment, int64_t kv_head, int64_t tile, const Scratch& s) const {
    if (s.packed[tile]) return;
    s.packed[tile] = 1;
    const Keys keys(segment, tile);
    const int64_t at = keys.first * d_, n = tile_padded(keys.count);
    const Source<bf16> k = k_.source(keys.row, kv_head, keys.count);
    rows_left(k, s.keys + at, n, d_);
    rows_left(v_.source(keys.row, kv_head, keys.count), s.values + at, n, d_);
    columns_left(k, s.keys_turned + at, n, d_);
  }

  // p and ds of a block of keys and of all heads.
  void gradients(const Segment& segment, const Pair& pair, int64_t heads, int64_t block,
                 const Scratch& s) const {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t queries = 0; queries < pair.blocks; ++queries) {
        if (!pair.meets(queries, block)) continue;
        square_gradients(segment, pair, queries * kBlock, block * kBlock, s.heads[h], s);
      }
    }
  }

  // Those of 32 queries and 32 keys from a query and a key of the pair on.
  void square_gradients(const Segment& segment, const Pair& pair, int64_t query, int64_t key,
                        const Scratch::Head& head, const Scratch& s) const {
    const int64_t keys = (pair.first_key + key) * d_, at = query * kBlock;
    multiply_square(s.keys + keys, head.q_turned + query * d_, s.scores);
    multiply_square(s.values + keys, head.dout_turned + query * d_, s.dp);
    score_gradient<bf16, bf16>({.geometry = g_,
                                .segment_rows = segment.rows,
                                .first_query = pair.first_query + query,
                                .queries = std::min(kBlock, pair.queries - query),
                                .first_key = pair.first_key + key,
                                .keys = std::min(kBlock, pair.keys - key),
                                .padded_queries = kBlock,
                                .padded_keys = kBlock,
                                .scores = s.scores,
                                .dp = s.dp,
                                .lse = head.lse + query,
                                .delta = head.delta + query,
                                .p = head.p + at,
                                .ds = head.ds + at,
                                .ds_right = head.ds_right + query * kTile + key * kBlock});
  }

  // (32,32) = rows (32,d) turned (d,32).
  AMX_TARGET void multiply_square(const bf16* rows, const bf16* turned, float* to) const {
    begin_block(nullptr, 0);
    for (int64_t i = 0; i < d_; i += kBlock) {
      add_step({rows + i, d_}, {turned + i * kBlock, kBlock});
    }
    end_block(to, kBlock);
  }

  // dv += p^T dout and dk += ds^T q of a block of keys, summed over the heads.
  AMX_TARGET void add_keys(const Pair& pair, int64_t heads, int64_t block, const Scratch& s) const {
    const int64_t at = (pair.first_key + block * kBlock) * d_;
    for (int64_t c = 0; c < d_; c += kBlock) {
      add_to_keys(pair, heads, block, s.dv + at + c, [&](int64_t h, int64_t queries) {
        return std::pair(s.heads[h].p + queries * kBlock, s.heads[h].dout + queries * d_ + 2 * c);
      });
    }
    for (int64_t c = 0; c < d_; c += kBlock) {
      add_to_keys(pair, heads, block, s.dk + at + c, [&](int64_t h, int64_t queries) {
        return std::pair(s.heads[h].ds + queries * kBlock, s.heads[h].q + queries * d_ + 2 * c);
      });
    }
  }

  // A block of 32 keys and 32 columns: operands(h, first of 32 queries) are (32,32) and (32,d).
  template <typename OperandsOf>
  AMX_TARGET BALORA_INLINE void add_to_keys(const Pair& pair, int64_t heads, int64_t block,
                                            float* sums, const OperandsOf& operands) const {
    begin_block(sums, d_);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t queries = 0; queries < pair.blocks; ++queries) {
        if (!pair.meets(queries, block)) continue;
        const auto [left, right] = operands(h, queries * kBlock);
        add_step({left, kBlock}, {right, d_});
      }
    }
    end_block(sums, d_);
  }

  // dq += k^T ds_right, (d,32) for each block of queries.
  AMX_TARGET void add_queries(const Pair& pair, const Scratch::Head& head, const bool* begun,
                              const Scratch& s, float* dq) const {
    const bf16* const keys = s.keys_turned + pair.first_key * d_;
    const int64_t ld = pair.key_blocks * kBlock;
    for (int64_t block = 0; block < pair.blocks; ++block) {
      const TileRange& met = pair.met[block];
      if (met.count() == 0) continue;
      for (int64_t row = 0; row < d_; row += kBlock) {
        float* const sums = dq + (block * d_ + row) * kBlock;
        begin_block(begun[block] ? sums : nullptr, kBlock);
        for (int64_t key = met.first; key < met.last; ++key) {
          add_step({keys + row * ld + key * kBlock, ld},
                   {head.ds_right + block * kTile * kBlock + key * kSquare, kBlock});
        }
        end_block(sums, kBlock);
      }
    }
  }

  void write_keys(const Segment& segment, const Run& run, const Scratch& s) const {
    const int64_t first = run.first * kTile, row = segment.begin + first;
    const int64_t keys = std::min(segment.rows, run.last * kTile) - first;
    for (const auto& [sums, out] : {std::pair(s.dk, dk_), std::pair(s.dv, dv_)}) {
      unpack_rows(sums + first * d_, d_, out.at(row, run.kv_head), out.stride, keys, g_.size);
    }
  }

  const Context* ctx_;
  Geometry g_;
  int64_t d_;
  Heads<bf16> dout_, q_, k_, v_, out_, dq_, dk_, dv_;
  const float* lse_;
  Slots<float> slots_;
};

}  // namespace

void backward_on_amx(Context* ctx, const balora_attention_backward& o) {
  const Geometry g = geometry_of(o);
  backward_runs<Scratch, float>(ctx, g, segments_of(o), [&](const Slots<float>& slots) {
    return Backward(ctx, g, o, slots);
  });
}

}  // namespace balora::attention::x86
