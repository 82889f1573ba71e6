// The softmax of a tile of queries (rows_bf16.h).
#include "kernels/cpu/attention/rows_groups.h"

#ifdef BALORA_TILES
namespace balora::attention::rows {
namespace {

// Half a row of four and 64 keys: p and its sum, in stages.
struct SoftmaxPart {
  SoftmaxRows t;        // a copy: what it stores could be the fields of another's
  int64_t row;          // of the first of four
  const float* scores;  // (4,kTile)
  Exponentials<3> e;
  __m512 scale, most;

  template <int kSteps>
  BF16_TARGET BALORA_INLINE void run(int64_t quarter, int64_t step) {
    const int64_t i = row + quarter, column = step / kSlots<kSteps> * 32;
    if (is_stage<kSteps>(step, 0)) {
      const float* s = scores + quarter * kTile + column;
      const __m512 top = all(t.base_2[i]);
      e.start(_mm512_fmsub_ps(_mm512_load_ps(s), scale, top),
              _mm512_fmsub_ps(_mm512_load_ps(s + kLanes), scale, top));
    }
    if (is_stage<kSteps>(step, 1)) e.split();
    if (is_stage<kSteps>(step, 2)) e.look_up(kQuadratic);
    if (is_stage<kSteps>(step, 3)) {
      e.finish();
      _mm512_store_si512(t.p + i * kTile + column, rounded(e.x[0], e.x[1]));
      const __m512 sum = _mm512_add_ps(e.x[0], e.x[1]);
      // The first half begins with the sums so far.
      const float* before = column == 0 ? t.total : t.passed;
      _mm512_store_ps(t.passed + i * kLanes,
                      _mm512_add_ps(_mm512_load_ps(before + i * kLanes), sum));
      most = _mm512_max_ps(sum, most);  // what is NaN changes nothing
    }
  }
};

// False where a maximum is passed by too much, and `passed` holds nothing.
template <int kSteps, bool kAsks>
BF16_TARGET bool softmax_blocks(const SoftmaxRows& rows, const bf16* keys, Ahead* ahead) {
  const SoftmaxRows t = rows;
  alignas(64) float scores[2][kBlock * kTile];
  Sums sums;
  tile_block::pair_products(t.size, t.q.data, t.q.stride, keys, kTile, sums);
  keep(sums, scores[0]);
  SoftmaxPart part{t, 0, nullptr, {}, base_2_scale(t.scale), all(0.0f)};
#pragma GCC unroll 1
  for (int64_t i = 0; i + kBlock < kTile; i += kBlock) {
    part.row = i, part.scores = scores[i / kBlock % 2];
    block_products<kSteps>(t.q, i + kBlock, keys, t.size, sums,
                           [&](int64_t quarter, int64_t step) MEANWHILE {
                             part.template run<kSteps>(quarter, step);
                             if (kAsks && step == 1) ahead->scores[0].ask();
                             if (kAsks && step == kSlots<kSteps> + 1) ahead->scores[1].ask();
                           });
    keep(sums, scores[(i / kBlock + 1) % 2]);
  }
  part.row = kTile - kBlock, part.scores = scores[1];
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    for (int64_t step = 0; step < 8; ++step) part.template run<4>(quarter, step);
  }
  return !_mm512_cmp_ps_mask(part.most, all(kMost), _CMP_GT_OQ);
}

// Sixteen rows of which nothing is seen yet.
BF16_TARGET void start_rows(const SoftmaxRows& t, int64_t row) {
  _mm512_store_ps(t.highest + row, all(kNone));
  for (int64_t i = row; i < row + kLanes; ++i) {
    _mm512_store_ps(t.total + i * kLanes, _mm512_setzero_ps());
  }
}

// Sums so far of the rows whose maxima rise.
BF16_TARGET void rescale(const SoftmaxRows& t, int64_t row, __mmask16 raised, __m512 factors) {
  alignas(64) float by[kLanes];
  _mm512_store_ps(by, factors);
  for (int64_t r = 0; r < kLanes; ++r) {
    if (!(raised >> r & 1)) continue;
    const int64_t i = row + r;
    const __m512 factor = all(by[r]);
    for (int64_t column = 0; column < t.size; column += kTile) {
      const int64_t width = std::min(kTile, t.size - column);
      float* out = t.out + column * kTile + i * width;
      for (int64_t c = 0; c < width; c += kLanes) {
        _mm512_store_ps(out + c, _mm512_mul_ps(_mm512_load_ps(out + c), factor));
      }
    }
    float* total = t.total + i * kLanes;
    _mm512_store_ps(total, _mm512_mul_ps(_mm512_load_ps(total), factor));
  }
}

// Stores the maxima of 16 rows, in base 2 as well. False where one of them is too large for that.
BF16_TARGET BALORA_INLINE bool keep_maxima(const SoftmaxRows& t, int64_t row, __m512 highest) {
  // Where nothing was seen yet, 0 instead of -infinity: differences are -infinity and not NaN.
  const __mmask16 any = _mm512_cmp_ps_mask(highest, all(kNone), _CMP_NEQ_UQ);
  const __m512 less = _mm512_maskz_mov_ps(any, highest);
  _mm512_store_ps(t.highest + row, highest);
  _mm512_store_ps(t.base_2 + row, _mm512_mul_ps(less, all(vec::kLog2e)));
  return !_mm512_cmp_ps_mask(_mm512_abs_ps(less), all(kLarge), _CMP_NLE_UQ);
}

// The first maximum of a row is the score of the last key that it sees, which does not depend on
// other rows; the others may pass it by kSlack. Those of a group's rows, -infinity where a row sees
// no key of the tile.
template <int kColumns>
BF16_TARGET BALORA_INLINE __m512 first_maxima(const SoftmaxRows& t, int64_t row,
                                              const float* scores, const Band& band, int64_t first,
                                              int64_t n) {
  alignas(64) float last[kLanes] = {};
  uint32_t seen = 0;
  for (int64_t r = 0; r < kLanes; ++r) {
    const int64_t i = row + r, key = std::min(n, i - band.low + 1) - 1, lane = key - first * kLanes;
    if (i >= t.rows || lane < 0 || lane >= kColumns * kLanes || key <= i - band.high) continue;
    last[r] = scores[r * kTile + lane];
    seen |= 1u << r;
  }
  const __m512 scaled = rounded_product(_mm512_load_ps(last), all(static_cast<float>(t.scale)));
  return _mm512_mask_mov_ps(all(kNone), static_cast<__mmask16>(seen), scaled);
}

// The same of a stair, whose rows see themselves last.
template <int kColumns>
BF16_TARGET BALORA_INLINE __m512 stair_maxima(const SoftmaxRows& t, const float* scores) {
  alignas(64) float last[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) {
    last[r] = scores[r * kTile + (kColumns - 1) * kLanes + r];
  }
  return rounded_product(_mm512_load_ps(last), all(static_cast<float>(t.scale)));
}

// The maxima of 16 rows brought to those of their scores.
template <int kColumns>
BF16_TARGET BALORA_INLINE bool raise_maxima(const SoftmaxRows& t, int64_t row, const float* scores,
                                            const Band& band, int64_t first, int64_t n) {
  const __m512 scale = all(static_cast<float>(t.scale)), none = all(kNone);
  __m512 top[kLanes];
#pragma GCC unroll 16
  for (int64_t r = 0; r < kLanes; ++r) {
    top[r] = none;
    const SeenKeys seen = seen_keys(band, row + r, t.rows, n);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kColumns; ++v) {
      const __m512 score = rounded_product(_mm512_load_ps(scores + r * kTile + v * kLanes), scale);
      top[r] = _mm512_mask_max_ps(top[r], seen.from((first + v) * kLanes), score, top[r]);
    }
  }
  const __m512 here = across_lanes(top, Most{}), before = _mm512_load_ps(t.highest + row);
  const __mmask16 seen_before = _mm512_cmp_ps_mask(before, none, _CMP_NEQ_UQ);
  const __m512 start = _mm512_mask_mov_ps(first_maxima<kColumns>(t, row, scores, band, first, n),
                                          seen_before, before);
  const __mmask16 raised =
      _mm512_cmp_ps_mask(here, _mm512_add_ps(start, all(kSlack<bf16>)), _CMP_GT_OQ);
  const __m512 both = _mm512_mask_mov_ps(start, raised, here);
  const __mmask16 again = raised & seen_before;
  if (again) rescale(t, row, again, exp_difference(before, both));
  return keep_maxima(t, row, both);
}

// The rows of a stair whose scores are known.
template <int64_t kColumns>
struct SoftmaxStair {
  static constexpr int64_t kStep = 1, kStages = (kColumns + 1) / 2 * 4;
  SoftmaxRows t;
  Band band;
  int64_t row;
  const float* scores;  // (16,kTile)
  __m512 scale;         // in base 2
  float* most;          // (16): the largest sums

  struct State {
    Exponentials<3> e;
    __m512 sum;
  };
  BF16_TARGET BALORA_INLINE void run(State& state, int64_t r, int64_t stage) const {
    Exponentials<3>& e = state.e;
    const int64_t i = row + r, v = stage / 4 * 2;
    const bool two = v + 1 < kColumns;
    if (stage % 4 == 0) {
      const float* s = scores + r * kTile + v * kLanes;
      const __m512 top = all(t.base_2[i]);
      const __m512 low = _mm512_fmsub_ps(_mm512_load_ps(s), scale, top);
      e.start(low, two ? _mm512_fmsub_ps(_mm512_load_ps(s + kLanes), scale, top) : low);
    }
    if (stage % 4 == 1) e.split();
    if (stage % 4 == 2) e.look_up(kQuadratic);
    if (stage % 4 == 3) {
      e.finish();
      __m512 low = e.x[0], high = two ? e.x[1] : _mm512_setzero_ps();
      const __mmask16 seen = stair_mask<kColumns>(band, i);
      if (v + 1 == kColumns) low = _mm512_maskz_mov_ps(seen, low);
      if (v + 2 == kColumns) high = _mm512_maskz_mov_ps(seen, high);
      _mm512_store_si512(t.p + i * kTile + v * kLanes, rounded(low, high));
      const __m512 sum = two ? _mm512_add_ps(low, high) : low;
      state.sum = stage == 3 ? sum : _mm512_add_ps(state.sum, sum);
      if (stage + 1 == kStages) {
        _mm512_store_ps(t.total + i * kLanes, state.sum);
        _mm512_store_ps(most, _mm512_max_ps(state.sum, _mm512_load_ps(most)));
      }
    }
  }
};

// The rows of any group.
template <int kColumns, bool kSomeLarge>
BF16_TARGET void softmax_rows(const SoftmaxRows& t, const Band& band, int64_t row, int64_t first,
                              int64_t n, const float* scores) {
  for (int64_t r = 0; r < std::min(kLanes, t.rows - row); ++r) {
    const int64_t i = row + r;
    const float top = t.highest[i] == kNone ? 0.0f : t.highest[i];
    const SeenKeys seen = seen_keys(band, i, t.rows, n);
    // Sums of pairs of vectors, as everywhere: the same bits in any group.
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t v = 0; v < kColumns; ++v) {
      const __m512 s = _mm512_load_ps(scores + r * kTile + v * kLanes);
      const int64_t key = (first + v) * kLanes;
      const __m512 p = _mm512_maskz_mov_ps(
          seen.from(key), probability<kSomeLarge>(kQuadratic, t.scale, top, t.base_2[i], s));
      _mm256_store_si256((__m256i*)(t.p + i * kTile + key), (__m256i)_mm512_cvtneps_pbh(p));
      __m512& sum = sums[(first + v) / 2];
      sum = _mm512_add_ps(sum, p);
    }
    const __m512 total = _mm512_add_ps(_mm512_load_ps(t.total + i * kLanes), sums[0]);
    _mm512_store_ps(t.total + i * kLanes, _mm512_add_ps(total, sums[1]));
  }
}

// A tile's groups, for run_groups().
struct SoftmaxGroups {
  const SoftmaxRows& t;
  const bf16* keys;
  const Band& band;
  int64_t n;
  bool stairs;    // whether there may be any
  bool can_wait;  // whether no maximum of the group is too large
  alignas(64) float scores[2][kLanes * kTile];
  alignas(64) float most[kLanes];

  // Scores are written before they are read, or are masked.
  SoftmaxGroups(const SoftmaxRows& rows, const bf16* operand, const Band& seen, int64_t count,
                bool is_first)
      : t(rows), keys(operand), band(seen), n(count), stairs(is_first) {
    std::fill(most, most + kLanes, 0.0f);
  }

  float* scores_of(int64_t row) { return scores[row / kLanes % 2]; }
  // Whether a stair's first maximum was passed by too much.
  BF16_TARGET bool passed() const {
    return _mm512_cmp_ps_mask(_mm512_load_ps(most), all(kMost), _CMP_GT_OQ) != 0;
  }

  template <int kColumns, bool kStair, typename Waiting>
  BF16_TARGET void multiply(int64_t row, int64_t first, const Waiting& waiting) {
    float* s = scores_of(row);
    group_products<kColumns, kStair>(t.q, row, keys + 2 * kLanes * first, t.size, s, waiting);
    if constexpr (kStair) {
      // The maxima of a stair are not raised here: passed() says afterwards whether a score outdid
      // one of them, which it cannot where one is -infinity.
      const __m512 own = stair_maxima<kColumns>(t, s);
      can_wait = keep_maxima(t, row, own) && !_mm512_cmp_ps_mask(own, all(kNone), _CMP_EQ_OQ);
      if (can_wait) return;
      start_rows(t, row);
    }
    can_wait = raise_maxima<kColumns>(t, row, s, band, first, n);
  }
  template <int kColumns>
  BF16_TARGET SoftmaxStair<kColumns> stair(int64_t row) {
    return {t, band, row, scores_of(row), base_2_scale(t.scale), most};
  }
  template <int kColumns>
  void finish(int64_t row, int64_t first) {
    if (can_wait) {
      softmax_rows<kColumns, false>(t, band, row, first, n, scores_of(row));
    } else {
      softmax_rows<kColumns, true>(t, band, row, first, n, scores_of(row));
    }
  }
};

}  // namespace

void start_softmax(const SoftmaxRows& t) {
  for (int64_t row = 0; row < kTile; row += kLanes) start_rows(t, row);
}

BF16_TARGET bool whole_softmax(SoftmaxRows& t, const bf16* keys, Ahead* ahead) {
  if (!small_enough(t.highest)) return false;
  bool holds = false;
  for_size(t.size, [&](auto steps) {
    holds = ahead ? softmax_blocks<steps(), true>(t, keys, ahead)
                  : softmax_blocks<steps(), false>(t, keys, ahead);
  });
  if (holds) std::swap(t.total, t.passed);
  return holds;
}

BF16_TARGET void masked_softmax(const SoftmaxRows& t, const bf16* keys, const Band& band, int64_t n,
                                bool is_first) {
  SoftmaxGroups groups(t, keys, band, n, is_first);
  run_groups(groups, band, t.rows, n, t.size == 64);
  if (!groups.passed()) return;
  start_softmax(t);
  groups.stairs = false;
  run_groups(groups, band, t.rows, n, false);
}

BF16_TARGET void sum_lanes(const float* total, float* sums) {
  for (int64_t i = 0; i < kTile; i += kLanes) {
    __m512 rows[16];
#pragma GCC unroll 16
    for (int64_t r = 0; r < 16; ++r) rows[r] = _mm512_load_ps(total + (i + r) * kLanes);
    _mm512_store_ps(sums + i, across_lanes(rows, Plus{}));
  }
}

}  // namespace balora::attention::rows
#endif
