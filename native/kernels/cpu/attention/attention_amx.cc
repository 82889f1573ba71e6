#include "kernels/cpu/attention/attention_amx.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention/attention_bf16.h"
#include "kernels/cpu/attention/attention_heads.h"
#include "kernels/cpu/attention/rows_ahead.h"
#include "kernels/cpu/products/amx_columns.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/products/tiles_words.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/lanes.h"
#include "kernels/cpu/runtime/vec_math.h"

namespace balora::attention::amx {

#ifndef BALORA_TILES
bool has(const Geometry&) {
  return false;
}
void forward(Context*, const Geometry&, const std::vector<Segment>&,
             const balora_attention_forward&) {}
#else
namespace {

using balora::amx::kGroup;
using balora::amx::Left;
using balora::amx::multiply_columns;
using balora::lanes::all;
using balora::lanes::exp2_for_bf16;
using balora::lanes::exp_difference;
using balora::lanes::rounded_product;

constexpr int64_t kBlock = balora::amx::kColumns;  // queries, or keys
constexpr int64_t kUnitBlocks = balora::amx::kMostSteps;
constexpr int64_t kSquare = kBlock * kBlock;
static_assert(kUnitBlocks * kBlock == kTile);

// The keys [first, first + 32 * blocks), all of one tile: a step of the online softmax takes them.
struct Unit {
  int64_t first, blocks;
};

// One thread's scratch. Packed tiles of keys and values fill as the queries reach them.
struct Scratch {
  bf16 *keys, *values;  // of a tile (n,d) and (d,n)
  bf16 *q, *p[2];       // (d,32), (64,32)
  float *scores[2], *out;
  float *highest, *total;
  uint8_t* packed;

  Scratch(Arena& arena, const Geometry& g, int64_t longest) {
    const int64_t tiles = tile_count(longest), tile = kTile * g.padded();
    keys = arena.take<bf16>(tiles * tile);
    values = arena.take<bf16>(tiles * tile);
    q = arena.take<bf16>(kBlock * g.padded());
    for (bf16*& pairs : p) pairs = arena.take<bf16>(kUnitBlocks * kSquare);
    for (float*& block : scores) block = arena.take<float>(kUnitBlocks * kSquare);
    out = arena.take<float>(kBlock * g.padded());
    highest = arena.take<float>(kBlock);
    total = arena.take<float>(kBlock);
    packed = arena.take<uint8_t>(tiles);
  }
};

// Exponentials of a unit's scores, four keys at a time: p = e^(s * scale - less), as pairs of rows,
// and their sums, with the bits of lanes::exponentials. The scale and what is subtracted are in
// base 2.
struct Exponentials {
  const float* scores;
  bf16* p;
  int64_t left;  // fours of keys
  __m512 scale, less[2], sum[2];

  // Two keys of 16 queries; returns their sum.
  BF16_TARGET BALORA_INLINE __m512 two_keys(int half, int64_t key) {
    const float* const s = scores + key * kBlock + 16 * half;
    const __m512 even = exp2_for_bf16(_mm512_fmsub_ps(_mm512_load_ps(s), scale, less[half]));
    const __m512 odd =
        exp2_for_bf16(_mm512_fmsub_ps(_mm512_load_ps(s + kBlock), scale, less[half]));
    _mm512_store_si512(p + key * kBlock + 32 * half, (__m512i)tiles::word_pairs(even, odd));
    return _mm512_add_ps(even, odd);
  }
  BF16_TARGET BALORA_INLINE void four_keys() {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 low = two_keys(half, 0), high = two_keys(half, 2);
      sum[half] = _mm512_add_ps(sum[half], _mm512_add_ps(low, high));
    }
    scores += 4 * kBlock, p += 4 * kBlock;
  }
  // Those that run beside the products of 16 rows: more would take time of the products.
  BF16_TARGET BALORA_INLINE void some() {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      if (left == 0) return;
      --left;
      four_keys();
    }
  }
  BF16_TARGET BALORA_INLINE void rest() {
    for (; left > 0; --left) four_keys();
  }
};

class Forward {
 public:
  Forward(const Geometry& g, const balora_attention_forward& o)
      : g_(g),
        d_(g.padded()),
        q_(o.q),
        k_(o.k),
        v_(o.v),
        out_(o.out),
        lse_(data_of<float>(o.lse)) {}

  void run(const Segment& segment, const Run& run, const Scratch& s) const {
    std::fill(s.packed, s.packed + tile_count(segment.rows), uint8_t{0});
    for (int64_t tile = run.first; tile < run.last; ++tile) {
      for (int64_t h = 0; h < g_.group(); ++h) {
        const Queries own(segment, tile);
        for (int64_t first = own.first; first < own.last;) {
          const int64_t last = std::min(own.last, (first / kBlock + 1) * kBlock);
          block(segment, run, h, {first, last}, s);
          first = last;
        }
      }
    }
  }

 private:
  struct Own {
    int64_t first, last;
    int64_t count() const { return last - first; }
  };

  // 32 queries, or fewer, of a head against all keys that they see.
  AMX_TARGET void block(const Segment& segment, const Run& run, int64_t h, const Own& own,
                        const Scratch& s) const {
    const int64_t head = run.kv_head * g_.group() + h, row = segment.query(own.first);
    lanes::columns_right(q_.source(row, head, own.count()), s.q, kBlock, d_);
    const int64_t low = g_.first_key(own.first) / kBlock * kBlock;
    const int64_t high = std::min(g_.last_key(own.last - 1, segment.rows), segment.rows);
    for (int64_t tile = low / kTile; tile * kTile < high; ++tile) {
      pack_keys(segment, run.kv_head, tile, s);
    }
    std::fill(s.highest, s.highest + kBlock, -std::numeric_limits<float>::infinity());
    std::fill(s.total, s.total + kBlock, 0.0f);
    // Asked for after each 16 rows of the products between the first unit and the last.
    const int64_t units = (high - 1) / kTile - low / kTile + 1;
    const int64_t groups = kTile / kGroup * ((d_ + kTile - 1) / kTile) + d_ / kGroup;
    RowsAhead<bf16> ahead =
        ahead_of(segment, run, h, own, s, std::max<int64_t>(1, (units - 1) * groups));
    if (units == 1) ahead.ask();
    // The last keys first: of a causal mask, those by the queries themselves; their maxima mostly
    // stay the highest.
    const auto unit_before = [&](int64_t end) {
      const int64_t first = std::max(low, (end - 1) / kTile * kTile);
      return Unit{first, (end - first) / kBlock};
    };
    Unit unit = unit_before((high + kBlock - 1) / kBlock * kBlock), before{0, 0};
    int parity = 0;
    bool sums_began = false;
    scores(unit, s, s.scores[0], [] {});
    for (;;) {
      const Unit next = unit.first > low ? unit_before(unit.first) : Unit{0, 0};
      hide_unseen(segment, own, unit, s.scores[parity]);
      Exponentials exponentials;
      const Raised raised = raise_maxima(unit, s, parity, exponentials);
      if (raised.rescales && before.blocks > 0) {
        add_values(segment, before, s, s.p[parity ^ 1], sums_began, [] {});
        sums_began = true, before.blocks = 0;
      }
      if (raised.rescales) rescale(s, raised);
      if (raised.large) {
        large_exponentials(unit, s, parity);
        exponentials.left = 0;
      }
      const auto some = [&]() BF16_TARGET {
        exponentials.some();
        ahead.ask();
      };
      if (next.blocks > 0) scores(next, s, s.scores[parity ^ 1], some);
      if (before.blocks > 0) {
        add_values(segment, before, s, s.p[parity ^ 1], sums_began, some);
        sums_began = true;
      }
      if (!raised.large) {
        exponentials.rest();
        for (int half = 0; half < 2; ++half) {
          float* const total = s.total + 16 * half;
          _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), exponentials.sum[half]));
        }
      }
      before = unit;
      if (next.blocks == 0) break;
      unit = next, parity ^= 1;
    }
    add_values(segment, before, s, s.p[parity], sums_began, [] {});
    finish(row, own.count(), head, s);
  }

  // Scores (32 a block, 32), of keys by queries.
  template <typename Meanwhile>
  AMX_TARGET BALORA_INLINE void scores(const Unit& unit, const Scratch& s, float* to,
                                       const Meanwhile& meanwhile) const {
    const bf16* const keys = s.keys + unit.first * d_;
    for (int64_t i = 0; i < d_; i += 2 * kBlock) {
      const Left a[] = {{keys + i, d_}, {keys + i + kBlock, d_}};
      multiply_columns(std::min<int64_t>(2, (d_ - i) / kBlock), a, unit.blocks * kBlock,
                       {s.q + i * kBlock, kBlock}, {to, kBlock}, i > 0, meanwhile);
    }
  }

  // out (d,32) += values p, of which nothing was summed where it has not `begun`.
  template <typename Meanwhile>
  AMX_TARGET BALORA_INLINE void add_values(const Segment& segment, const Unit& unit,
                                           const Scratch& s, const bf16* p, bool begun,
                                           const Meanwhile& meanwhile) const {
    const Keys keys(segment, unit.first / kTile);
    const int64_t n = tile_padded(keys.count);
    const bf16* const values = s.values + keys.first * d_ + (unit.first - keys.first);
    const Left a[] = {{values, n}, {values + kBlock, n}};
    multiply_columns(unit.blocks, a, d_, {p, kBlock}, {s.out, kBlock}, begun, meanwhile);
  }

  // Scores that a query of the block does not see become -infinity.
  BF16_TARGET void hide_unseen(const Segment& segment, const Own& own, const Unit& unit,
                               float* scores) const {
    const int64_t last = unit.first + unit.blocks * kBlock;
    if (g_.first_key(own.last - 1) <= unit.first && last <= g_.last_key(own.first, segment.rows) &&
        last <= segment.rows) {
      return;
    }
    const __m512 none = all(-std::numeric_limits<float>::infinity());
    for (int64_t key = unit.first; key < last; ++key, scores += kBlock) {
      uint32_t seen = 0;
      if (key < segment.rows) {
        const int64_t from = std::clamp<int64_t>(g_.first_query(key) - own.first, 0, kBlock);
        const int64_t to =
            std::clamp<int64_t>(g_.last_query(key, segment.rows) - own.first, from, kBlock);
        seen = static_cast<uint32_t>((uint64_t{1} << to) - (uint64_t{1} << from));
      }
      _mm512_mask_store_ps(scores, static_cast<__mmask16>(~seen), none);
      _mm512_mask_store_ps(scores + 16, static_cast<__mmask16>(~seen >> 16), none);
    }
  }

  struct Raised {
    bool rescales, large;
    __m512 factors[2];
  };

  // Brings `highest` to the unit's maxima, where these pass it by more than kSlack.
  BF16_TARGET BALORA_INLINE Raised raise_maxima(const Unit& unit, const Scratch& s, int parity,
                                                Exponentials& e) const {
    const __m512 none = all(-std::numeric_limits<float>::infinity());
    const float scale = static_cast<float>(g_.scale);
    const float* const scores = s.scores[parity];
    __m512 top[2][2] = {{none, none}, {none, none}};
    for (int64_t j = 0; j < unit.blocks * kBlock; j += 2) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512 score = _mm512_load_ps(scores + j * kBlock + 16 * i);
        top[i / 2][i % 2] = _mm512_max_ps(score, top[i / 2][i % 2]);
      }
    }
    Raised raised{false, false, {}};
    for (int half = 0; half < 2; ++half) {
      float* const place = s.highest + 16 * half;
      const __m512 here = rounded_product(_mm512_max_ps(top[0][half], top[1][half]), all(scale));
      const __m512 before = _mm512_load_ps(place);
      const __mmask16 raises =
          _mm512_cmp_ps_mask(here, _mm512_add_ps(before, all(kSlack<bf16>)), _CMP_GT_OQ);
      const __m512 both = _mm512_mask_mov_ps(before, raises, here);
      _mm512_store_ps(place, both);
      // Where nothing was seen yet, 0 instead of -infinity: differences are -infinity and not NaN.
      const __m512 highest = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(both, none, _CMP_NEQ_UQ), both);
      // Before the first key that is seen, the sums are 0.
      raised.rescales |= _mm512_mask_cmp_ps_mask(raises, before, none, _CMP_NEQ_UQ) != 0;
      raised.factors[half] = _mm512_mask_mov_ps(all(1.0f), raises, exp_difference(before, highest));
      raised.large |= _mm512_cmp_ps_mask(_mm512_abs_ps(highest), all(1024.0f), _CMP_NLE_UQ) != 0;
      e.less[half] = _mm512_mul_ps(highest, all(vec::kLog2e));
      e.sum[half] = _mm512_setzero_ps();
    }
    e.scale = all(scale * vec::kLog2e);
    e.scores = scores, e.p = s.p[parity], e.left = unit.blocks * kBlock / 4;
    return raised;
  }

  BF16_TARGET void rescale(const Scratch& s, const Raised& raised) const {
    for (int64_t i = 0; i < d_; ++i) {
      for (int half = 0; half < 2; ++half) {
        float* const out = s.out + i * kBlock + 16 * half;
        _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), raised.factors[half]));
      }
    }
    for (int half = 0; half < 2; ++half) {
      float* const total = s.total + 16 * half;
      _mm512_store_ps(total, _mm512_mul_ps(_mm512_load_ps(total), raised.factors[half]));
    }
  }

  // Maxima so large that scores must not be scaled in base 2.
  BF16_TARGET void large_exponentials(const Unit& unit, const Scratch& s, int parity) const {
    for (int half = 0; half < 2; ++half) {
      alignas(64) float highest[16], sum[16];
      for (int i = 0; i < 16; ++i) {
        const float value = s.highest[16 * half + i];
        highest[i] = value == -std::numeric_limits<float>::infinity() ? 0.0f : value;
      }
      lanes::exponentials(s.scores[parity] + 16 * half, kBlock, 0, unit.blocks * kBlock,
                          static_cast<float>(g_.scale), highest, s.p[parity] + 32 * half, sum);
      for (int i = 0; i < 16; ++i) s.total[16 * half + i] += sum[i];
    }
  }

  // The rows that the block writes at its end, the queries of the run's next one, and the keys beside
  // those, which this is the first to meet.
  RowsAhead<bf16> ahead_of(const Segment& segment, const Run& run, int64_t h, const Own& own,
                           const Scratch& s, int64_t parts) const {
    RowsAhead<bf16> ahead(parts);
    const int64_t head = run.kv_head * g_.group() + h;
    ahead.add(out_.source(segment.query(own.first), head, own.count()));
    const Queries tile(segment, own.first / kTile);
    if (own.last < tile.last) {
      ahead.add(q_.source(segment.query(own.last), head, tile.last - own.last));
      return ahead;
    }
    const bool more = h + 1 < g_.group();
    const int64_t index = own.first / kTile + (more ? 0 : 1);
    if (index == run.last) return ahead;
    const Queries next(segment, index);
    const int64_t count = std::min(kBlock, next.count());
    ahead.add(
        q_.source(segment.query(next.first), more ? head + 1 : run.kv_head * g_.group(), count));
    if (more || s.packed[index]) return ahead;
    const Keys keys(segment, index);
    ahead.add(k_.source(keys.row, run.kv_head, keys.count));
    ahead.add(v_.source(keys.row, run.kv_head, keys.count));
    return ahead;
  }

  void pack_keys(const Segment& segment, int64_t kv_head, int64_t tile, const Scratch& s) const {
    if (s.packed[tile]) return;
    s.packed[tile] = 1;
    const Keys keys(segment, tile);
    const int64_t at = keys.first * d_, n = tile_padded(keys.count);
    lanes::rows_left(k_.source(keys.row, kv_head, keys.count), s.keys + at, n, d_);
    lanes::columns_left(v_.source(keys.row, kv_head, keys.count), s.values + at, n, d_);
  }

  void finish(int64_t row, int64_t queries, int64_t head, const Scratch& s) const {
    float lse[kBlock];
    Softmax<bf16>::finish(queries, s.highest, s.total, lse);
    for (int64_t i = 0; i < queries; ++i) lse_[(row + i) * g_.heads + head] = lse[i];
    lanes::unpack_columns(s.out, kBlock, s.total, out_.at(row, head), out_.stride, queries,
                          g_.size);
  }

  Geometry g_;
  int64_t d_;
  Heads<bf16> q_, k_, v_, out_;
  float* lse_;
};

}  // namespace

bool has(const Geometry& g) {
  return tiles_use_amx() && g.only_scales<float>();
}

void forward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
             const balora_attention_forward& o) {
  const Plan plan = make_plan(g, segments, ctx->num_threads, false);
  char* memory = workspace<char>(ctx, scratch_bytes<Scratch>(g, plan) * plan.width());
  const Forward forward(g, o);
  for_runs<Scratch>(ctx, g, plan, memory, [&](const Run& run, const Scratch& scratch) {
    forward.run(segments[static_cast<size_t>(run.segment)], run, scratch);
  });
}
#endif

}  // namespace balora::attention::amx
