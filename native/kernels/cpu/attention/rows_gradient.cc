// The gradient of the scores of a tile of queries (rows_bf16.h).
#include "kernels/cpu/attention/rows_groups.h"

#ifdef BALORA_TILES
#include "kernels/cpu/products/x86/tiles_words.h"

namespace balora::attention::rows {
namespace {

// Two rows of four and 16 keys: p, in stages.
struct ProbabilityPart {
  GradientRows t;  // a copy: what it stores could be the fields of another's
  int64_t row;
  const float* scores;  // (4,kTile)
  float* exact;         // (4,kTile): p before it is rounded
  Exponentials<2> e;
  __m512 scale;

  template <int kSteps>
  BF16_TARGET BALORA_INLINE void run(int64_t quarter, int64_t step) {
    const int64_t r = quarter / 2 * 2;
    const int64_t column = (quarter % 2 * 2 + step / kSlots<kSteps>)*kLanes;
    if (is_stage<kSteps>(step, 0)) {
      const float* s = scores + r * kTile + column;
      e.start(_mm512_fmsub_ps(_mm512_load_ps(s), scale, all(t.base_2[row + r])),
              _mm512_fmsub_ps(_mm512_load_ps(s + kTile), scale, all(t.base_2[row + r + 1])));
    }
    if (is_stage<kSteps>(step, 1)) e.split();
    if (is_stage<kSteps>(step, 2)) e.look_up(kLine);
    if (is_stage<kSteps>(step, 3)) {
      e.finish();
      float* to = exact + r * kTile + column;
      _mm512_store_ps(to, e.x[0]);
      _mm512_store_ps(to + kTile, e.x[1]);
      _mm512_store_si512(t.p + (row + r) * kTile + 2 * column,
                         (__m512i)tiles::word_pairs(e.x[0], e.x[1]));
    }
  }
};

// ds of two rows of four and 32 keys, in stages.
struct SlopePart {
  GradientRows t;
  int64_t row;
  const float *exact, *dp;  // (4,kTile)
  __m512 ds[2][2];

  BF16_TARGET BALORA_INLINE void run(int64_t quarter, int64_t stage) {
    const int64_t r = quarter / 2 * 2, column = quarter % 2 * 32;
    if (stage < 2) {
      const int64_t place = (r + stage) * kTile + column;
      const __m512 delta = all(t.delta[row + r + stage]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < 2; ++v) {
        const __m512 p = _mm512_load_ps(exact + place + v * kLanes);
        const __m512 slope = _mm512_sub_ps(_mm512_load_ps(dp + place + v * kLanes), delta);
        ds[stage][v] = _mm512_mul_ps(p, slope);
      }
    }
    if (stage == 2) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < 2; ++i) {
        _mm512_store_si512(t.ds_rows + (row + r + i) * kTile + column, rounded(ds[i][0], ds[i][1]));
      }
    }
    if (stage == 3) {
      bf16* pairs = t.ds + (row + r) * kTile + 2 * column;
      _mm512_store_si512(pairs, (__m512i)tiles::word_pairs(ds[0][0], ds[1][0]));
      _mm512_store_si512(pairs + 32, (__m512i)tiles::word_pairs(ds[0][1], ds[1][1]));
    }
  }
};

// The products of dp are beside the probabilities of their block, those of the next scores beside
// the slopes.
template <int kSteps, bool kAsks>
BF16_TARGET void gradient_blocks(const GradientRows& rows, const bf16* keys, const bf16* values,
                                 Ahead* ahead) {
  const GradientRows t = rows;
  alignas(64) float scores[kBlock * kTile], dp[kBlock * kTile], exact[kBlock * kTile];
  Sums sums;
  tile_block::pair_products(t.size, t.q.data, t.q.stride, keys, kTile, sums);
  keep(sums, scores);
  ProbabilityPart part{t, 0, scores, exact, {}, base_2_scale(t.scale)};
  SlopePart slopes{t, 0, exact, dp, {}};
#pragma GCC unroll 1
  for (int64_t i = 0; i < kTile; i += kBlock) {
    part.row = i;
    block_products<kSteps>(t.dout, i, values, t.size, sums,
                           [&](int64_t quarter, int64_t step) MEANWHILE {
                             part.template run<kSteps>(quarter, step);
                             if (kAsks && step == 1) ahead->scores[0].ask();
                             if (kAsks && step == kSlots<kSteps> + 1) ahead->scores[1].ask();
                           });
    keep(sums, dp);
    slopes.row = i;
    if (i + kBlock == kTile) break;
    block_products<kSteps>(t.q, i + kBlock, keys, t.size, sums,
                           [&](int64_t quarter, int64_t step) MEANWHILE {
                             constexpr int64_t kEach = kSlots<kSteps> / 2;
                             if (step % kEach == kEach - 1) slopes.run(quarter, step / kEach);
                             if (kAsks && step == 1) ahead->gradients[0].ask();
                             if (kAsks && step == kSlots<kSteps>) ahead->gradients[1].ask();
                           });
    keep(sums, scores);
  }
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    for (int64_t stage = 0; stage < 4; ++stage) slopes.run(quarter, stage);
  }
}

// p and ds of rows i and i + 1 and 16 keys.
BF16_TARGET BALORA_INLINE void keep_pair(const GradientRows& t, int64_t i, int64_t key, __m512 even,
                                         __m512 odd, const float* dp, __mmask16 low,
                                         __mmask16 high) {
  even = _mm512_maskz_mov_ps(low, even);
  odd = _mm512_maskz_mov_ps(high, odd);
  const __m512 even_slope = _mm512_sub_ps(_mm512_load_ps(dp), all(t.delta[i]));
  const __m512 odd_slope = _mm512_sub_ps(_mm512_load_ps(dp + kTile), all(t.delta[i + 1]));
  const __m512 even_ds = _mm512_maskz_mul_ps(low, even, even_slope);
  const __m512 odd_ds = _mm512_maskz_mul_ps(high, odd, odd_slope);
  const int64_t pair = i * kTile + 2 * key;
  _mm512_store_si512(t.p + pair, (__m512i)tiles::word_pairs(even, odd));
  _mm512_store_si512(t.ds + pair, (__m512i)tiles::word_pairs(even_ds, odd_ds));
  bf16* to = t.ds_rows + i * kTile + key;
  _mm256_store_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(even_ds));
  _mm256_store_si256((__m256i*)(to + kTile), (__m256i)_mm512_cvtneps_pbh(odd_ds));
}

// Pairs of a stair's rows whose scores and dp are known.
template <int64_t kColumns>
struct GradientStair {
  static constexpr int64_t kStep = 2, kStages = 4 * kColumns;
  GradientRows t;
  Band band;
  int64_t row;
  const float *scores, *dp;  // (16,kTile)
  __m512 scale;              // in base 2

  struct State {
    Exponentials<2> e;
  };
  BF16_TARGET BALORA_INLINE void run(State& state, int64_t r, int64_t stage) const {
    Exponentials<2>& e = state.e;
    const int64_t i = row + r, v = stage / 4, place = r * kTile + v * kLanes;
    if (stage % 4 == 0) {
      const float* s = scores + place;
      e.start(_mm512_fmsub_ps(_mm512_load_ps(s), scale, all(t.base_2[i])),
              _mm512_fmsub_ps(_mm512_load_ps(s + kTile), scale, all(t.base_2[i + 1])));
    }
    if (stage % 4 == 1) e.split();
    if (stage % 4 == 2) e.look_up(kLine);
    if (stage % 4 == 3) {
      e.finish();
      const bool part = v + 1 == kColumns;
      const __mmask16 low = part ? stair_mask<kColumns>(band, i) : __mmask16{0xffff};
      const __mmask16 high = part ? stair_mask<kColumns>(band, i + 1) : __mmask16{0xffff};
      keep_pair(t, i, v * kLanes, e.x[0], e.x[1], dp + place, low, high);
    }
  }
};

// The rows of any group.
template <int kColumns, bool kSomeLarge>
BF16_TARGET void gradient_rows(const GradientRows& t, const Band& band, int64_t row, int64_t first,
                               int64_t n, const float* scores, const float* dp) {
  for (int64_t r = 0; r < std::min(kLanes, t.rows - row); r += 2) {
    const int64_t i = row + r;
    const SeenKeys even = seen_keys(band, i, t.rows, n), odd = seen_keys(band, i + 1, t.rows, n);
    for (int64_t v = 0; v < kColumns; ++v) {
      const int64_t place = r * kTile + v * kLanes, key = (first + v) * kLanes;
      const __m512 p[2] = {probability<kSomeLarge>(kLine, t.scale, t.lse[i], t.base_2[i],
                                                   _mm512_load_ps(scores + place)),
                           probability<kSomeLarge>(kLine, t.scale, t.lse[i + 1], t.base_2[i + 1],
                                                   _mm512_load_ps(scores + place + kTile))};
      keep_pair(t, i, key, p[0], p[1], dp + place, even.from(key), odd.from(key));
    }
  }
}

// A tile's groups, for run_groups().
struct GradientGroups {
  const GradientRows& t;
  const bf16 *keys, *values;
  const Band& band;
  int64_t n;
  bool can_wait;  // whether no log-sum-exp of the tile is too large
  bool stairs = true;
  alignas(64) float scores[2][kLanes * kTile], dp[2][kLanes * kTile];

  // Scores are written before they are read, or are masked.
  BF16_TARGET GradientGroups(const GradientRows& rows, const bf16* keys_operand,
                             const bf16* values_operand, const Band& seen, int64_t count)
      : t(rows),
        keys(keys_operand),
        values(values_operand),
        band(seen),
        n(count),
        can_wait(small_enough(rows.lse)) {}

  float* scores_of(int64_t row) { return scores[row / kLanes % 2]; }
  float* dp_of(int64_t row) { return dp[row / kLanes % 2]; }

  template <int kColumns, bool kStair, typename Waiting>
  BF16_TARGET void multiply(int64_t row, int64_t first, const Waiting& waiting) {
    const int64_t at = 2 * kLanes * first;
    group_products<kColumns, kStair>(t.q, row, keys + at, t.size, scores_of(row), waiting);
    group_products<kColumns, kStair>(t.dout, row, values + at, t.size, dp_of(row), NoRows{});
  }
  template <int kColumns>
  BF16_TARGET GradientStair<kColumns> stair(int64_t row) {
    return {t, band, row, scores_of(row), dp_of(row), base_2_scale(t.scale)};
  }
  template <int kColumns>
  void finish(int64_t row, int64_t first) {
    if (can_wait) {
      gradient_rows<kColumns, false>(t, band, row, first, n, scores_of(row), dp_of(row));
    } else {
      gradient_rows<kColumns, true>(t, band, row, first, n, scores_of(row), dp_of(row));
    }
  }
};

}  // namespace

BF16_TARGET void start_gradient(const GradientRows& t) {
  for (int64_t i = 0; i < kTile; i += kLanes) {
    _mm512_store_ps(t.base_2 + i, _mm512_mul_ps(_mm512_load_ps(t.lse + i), all(vec::kLog2e)));
  }
}

BF16_TARGET bool whole_gradient(const GradientRows& t, const bf16* keys, const bf16* values,
                                Ahead* ahead) {
  if (!small_enough(t.lse)) return false;
  for_size(t.size, [&](auto steps) {
    if (ahead) {
      gradient_blocks<steps(), true>(t, keys, values, ahead);
    } else {
      gradient_blocks<steps(), false>(t, keys, values, ahead);
    }
  });
  return true;
}

BF16_TARGET void masked_gradient(const GradientRows& t, const bf16* keys, const bf16* values,
                                 const Band& band, int64_t n) {
  GradientGroups groups(t, keys, values, band, n);
  run_groups(groups, band, t.rows, n, t.size == 64);
}

}  // namespace balora::attention::rows
#endif
