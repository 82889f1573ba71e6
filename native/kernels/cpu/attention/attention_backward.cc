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
#include "kernels/cpu/attention/attention_heads.h"
#include "kernels/cpu/attention/attention_pair.h"
#include "kernels/cpu/attention/attention_slots.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora::attention {
namespace {

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
    BALORA_X86({"amx", platform::kAmx,
                [](const balora_attention_backward& o) { return o.q->dtype == BALORA_BF16; },
                x86::backward_on_amx}, ){"tiles", 0, nullptr, backward_by_tiles},
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
