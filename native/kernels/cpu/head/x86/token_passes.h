// Passes over logits that lie by token, a lane for each row of the batch, so that sums and maxima
// need no look across a vector, and products by the head need none of it packed (by_token.cc).
// A group of tokens gets its exponentials while it is in a cache, less the group's own maxima; what
// is kept of it is rescaled by lane when those of all groups are known. With e^((z - largest) / T)
// and e^((y - largest of y) / T) of student and teacher as x and q, there are kept x and x - q as
// f16, whose error is below that of a row of dz in bf16, by its largest elements; x in f32 where
// there are no teacher's logits.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/head/head.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/cpu/runtime/x86/lanes.h"
#include "kernels/cpu/runtime/x86/targets.h"
#include "kernels/shared/divergence.h"
#include "tensor/dtype.h"

namespace balora::head {

constexpr int64_t kLanes = 16;       // of a vector
constexpr int64_t kPanelLanes = 32;  // numbers of lanes are multiples of it

// A logit that is among the K largest of its lane, perhaps.
struct LaneCandidate {
  int32_t lane;
  TopCandidate<float> logit;

  bool operator<(const LaneCandidate& other) const {
    return lane != other.lane ? lane < other.lane : logit < other.logit;
  }
};

// Rows by lane: their shifts and 1 / T, and the factors of a gradient; masks of a vector's lanes
// each: those with a teacher, whose q is taken for 0 in others, with candidates, and with
// exponentials at T = 2.
struct Lanes {
  std::vector<float> z, y, scale, task, student, teacher;
  std::vector<uint16_t> compared, ranked, squares;

  explicit Lanes(int64_t lanes) {
    const auto count = static_cast<size_t>(lanes);
    for (auto* numbers : {&z, &y, &scale, &task, &student, &teacher}) numbers->resize(count);
    for (auto* masks : {&compared, &ranked, &squares}) masks->resize(count / kLanes);
  }
};

// KeptSums (head.h) by lane: (kLaneSums,lanes).
enum { kStudent, kSquares, kTeachers, kGap, kRest, kLaneSums };

// Maxima and sums of groups of tokens in order, and the sums over all of them. For a vector of
// lanes combine_groups() makes of the maxima the rows' shifts and, in their place, the factors of
// each group's x and q.
struct GroupedLanes {
  float* maxima;   // (count, lanes) of z, behind each group's those of y if there are any
  float* sums;     // (count, kLaneSums, lanes)
  double* totals;  // (kLaneSums, lanes)
  int64_t count, lanes;
  bool has_teacher;

  int64_t all_lanes() const { return has_teacher ? 2 * lanes : lanes; }
  float* maxima_of(int64_t group) const { return maxima + group * all_lanes(); }
  float* sums_of(int64_t group) const { return sums + group * kLaneSums * lanes; }
};

// Logits of the student and a teacher, as products leave them: (panels,tokens,32), panels
// `panel_step` apart; and what is made of them.
struct TokenGroup {
  const float* z;
  const float* y;  // null: none
  int64_t panel_step, tokens, lanes;
  int64_t first;   // token of the vocabulary
  float* maxima;   // (lanes) of z, and behind them of y
  float* sums;     // (kLaneSums,lanes)
  uint32_t* kept;  // (lanes / 16, tokens, 16), vectors of lanes kept_step apart
  int64_t kept_step;

  // Elements from z or y to a lane's logit.
  int64_t offset(int64_t lane, int64_t token) const {
    return lane / kPanelLanes * panel_step + token * kPanelLanes + lane % kPanelLanes;
  }
};

constexpr int64_t kTokens = 32;  // whose sums are taken by themselves; also a line of dz
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The largest of each lane in the rows [begin, end), `step` apart, of which NaN is left out.
AVX512_TARGET BALORA_INLINE __m512 largest(const float* rows, int64_t begin, int64_t end,
                                           int64_t step) {
  __m512 most[4];  // which do not wait for each other
  for (auto& value : most) value = lanes::all(-kInfinity);
  for (int64_t row = begin; row < end; row += 4) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      const float* const from = rows + std::min(row + i, end - 1) * step;
      most[i] = _mm512_max_ps(_mm512_loadu_ps(from), most[i]);
    }
  }
  return _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
}

// The functions of kernels/shared/divergence.h by lane.
AVX512_TARGET BALORA_INLINE __m512 exp_series_of(__m512 x) {
  return 0.5f + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120)));
}
AVX512_TARGET BALORA_INLINE __mmask16 outside_series(__m512 x) {
  constexpr auto kRange = static_cast<float>(kSeriesRange);
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), lanes::all(kRange), _CMP_NLT_UQ);  // NaN, too
}
AVX512_TARGET BALORA_INLINE __m512 divergence_rest_of(__m512 q, __m512 x, __m512 w) {
  const __m512 series = q * (w * w * exp_series_of(-w));
  const __mmask16 outside = outside_series(w);
  if (outside == 0) return series;
  return _mm512_mask_mov_ps(series, outside, (x - q) + q * w);
}
AVX512_TARGET BALORA_INLINE __m512 exp_difference_of(__m512 q, __m512 x, __m512 u) {
  const __m512 series = q * (u + u * u * exp_series_of(u));
  return _mm512_mask_sub_ps(series, outside_series(u), x, q);
}

// Writes what is kept of a vector of lanes of a group, and its sums, in which kTokens are added up
// first. `bounds` are by lane those of its K largest.
template <bool kTeacher>
AVX512_TARGET void keep_lanes(const TokenGroup& group, const Lanes& by, const float* bounds,
                              int64_t lane, std::vector<LaneCandidate>& found) {
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __mmask16 compared = by.compared[static_cast<size_t>(lane / kLanes)];
  const __mmask16 ranked = by.ranked[static_cast<size_t>(lane / kLanes)];
  const __m512 shift_z = _mm512_loadu_ps(group.maxima + lane),
               bound = _mm512_loadu_ps(bounds + lane);
  const __m512 shift_y = kTeacher ? _mm512_loadu_ps(group.maxima + group.lanes + lane) : shift_z;
  const __m512 centre = shift_y - shift_z, scale = _mm512_loadu_ps(by.scale.data() + lane);
  const __m512 factor = scale * vec::kLog2e;
  const float* z = group.z + group.offset(lane, 0);
  const float* y = kTeacher ? group.y + group.offset(lane, 0) : nullptr;
  uint32_t* to = group.kept + lane / kLanes * group.kept_step;
  __m512 all[kLaneSums] = {};
  for (int64_t token = 0; token < group.tokens;) {
    const int64_t end = std::min(group.tokens, token + kTokens);
    __m512 sums[kLaneSums] = {};
    auto& [student, squares, teacher, gap, rest] = sums;
    for (; token < end; ++token, z += kPanelLanes, to += kLanes) {
      const __m512 logits = _mm512_loadu_ps(z);
      uint32_t large = _mm512_mask_cmp_ps_mask(ranked, logits, bound, _CMP_GE_OQ);
      for (; large != 0; large &= large - 1) [[unlikely]] {
        const int i = __builtin_ctz(large);
        const TopCandidate<float> logit = {group.first + token, z[i], kTeacher ? y[i] : 0.0f};
        found.push_back({static_cast<int32_t>(lane + i), logit});
      }
      const __m512 x = lanes::exp_difference(logits, shift_z, factor);
      student += x;
      squares += x * x;
      if constexpr (kTeacher) {
        const __m512 teachers = _mm512_loadu_ps(y);
        const __m512 q =
            _mm512_maskz_mov_ps(compared, lanes::exp_difference(teachers, shift_y, factor));
        const __m512 w = _mm512_maskz_mul_ps(compared, teachers - logits - centre, scale);
        teacher += q;
        gap += q * w;
        rest += divergence_rest_of(q, x, w);
        const __m512i low = _mm512_castsi256_si512(_mm512_cvtps_ph(x, kRound));
        _mm512_storeu_si512(to, _mm512_inserti64x4(low, _mm512_cvtps_ph(x - q, kRound), 1));
        y += kPanelLanes;
      } else {
        _mm512_storeu_ps(to, x);
      }
    }
    for (int i = 0; i < kLaneSums; ++i) all[i] += sums[i];
  }
  for (int i = 0; i < kLaneSums; ++i) _mm512_storeu_ps(group.sums + i * group.lanes + lane, all[i]);
}

// A vector of sums in f64.
struct WideSum {
  __m512d low, high;

  AVX512_TARGET WideSum() : low(_mm512_setzero_pd()), high(_mm512_setzero_pd()) {}
  AVX512_TARGET BALORA_INLINE void add(__m512 factor, __m512 value) {
    low += _mm512_cvtps_pd(_mm512_castps512_ps256(factor)) *
           _mm512_cvtps_pd(_mm512_castps512_ps256(value));
    high += _mm512_cvtps_pd(_mm512_extractf32x8_ps(factor, 1)) *
            _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
  }
};

// See GroupedLanes.
AVX512_TARGET inline void combine_groups(const GroupedLanes& groups, int64_t lane, Lanes& by) {
  const int64_t step = groups.all_lanes();
  float* const z = groups.maxima + lane;
  float* const y = groups.has_teacher ? z + groups.lanes : nullptr;
  const __m512 largest_z = largest(z, 0, groups.count, step);
  const __m512 largest_y = y ? largest(y, 0, groups.count, step) : _mm512_setzero_ps();
  const __m512 centre = largest_y - largest_z, scale = _mm512_loadu_ps(by.scale.data() + lane);
  const __m512 log2_scale = scale * vec::kLog2e;
  WideSum totals[kLaneSums];
  for (int64_t i = 0; i < groups.count; ++i) {
    __m512 of[kLaneSums];
    const float* const sums = groups.sums_of(i) + lane;
    for (int s = 0; s < kLaneSums; ++s) of[s] = _mm512_loadu_ps(sums + s * groups.lanes);
    const __m512 own_z = _mm512_loadu_ps(z + i * step),
                 factor = lanes::exp_difference(own_z, largest_z, log2_scale);
    totals[kStudent].add(factor, of[kStudent]);
    totals[kSquares].add(factor * factor, of[kSquares]);
    _mm512_storeu_ps(z + i * step, factor);
    if (!y) continue;
    const __m512 own_y = _mm512_loadu_ps(y + i * step);
    const __m512 factor_q = lanes::exp_difference(own_y, largest_y, log2_scale);
    // The centre moves by h T, so that factor = factor_q e^-h:
    //   sum q (e^-(w+h) - 1 + w + h) = e^-h rest + (e^-h - 1 + h) teacher - (e^-h - 1) gap
    const __m512 h = ((own_y - own_z) - centre) * scale;
    totals[kTeachers].add(factor_q, of[kTeachers]);
    totals[kGap].add(factor_q, of[kGap]);
    totals[kGap].add(factor_q * h, of[kTeachers]);
    totals[kRest].add(factor, of[kRest]);
    totals[kRest].add(divergence_rest_of(factor_q, factor, h), of[kTeachers]);
    totals[kRest].add(exp_difference_of(factor_q, factor, -h), -of[kGap]);
    _mm512_storeu_ps(y + i * step, factor_q);
  }
  _mm512_storeu_ps(by.z.data() + lane, largest_z);
  _mm512_storeu_ps(by.y.data() + lane, largest_y);
  for (int s = 0; s < kLaneSums; ++s) {
    double* const to = groups.totals + s * groups.lanes + lane;
    _mm512_storeu_pd(to, totals[s].low);
    _mm512_storeu_pd(to + 8, totals[s].high);
  }
}

// dz (16,tokens) of a vector of lanes, rows ld apart, from what is kept of `tokens` tokens and the
// factors x and q of its group: rounded, and filled up with zeros to a multiple of 32 tokens.
template <bool kTeacher>
BF16_TARGET void lane_gradients(const uint32_t* kept, int64_t tokens, const Lanes& by, int64_t lane,
                                const float* x, const float* q, bf16* dz, int64_t ld) {
  const __mmask16 squares = by.squares[static_cast<size_t>(lane / kLanes)];
  const __m512 factor = _mm512_loadu_ps(x + lane);
  const __m512 scaled = _mm512_loadu_ps(by.task.data() + lane) * factor;
  const __m512 task = _mm512_mask_mul_ps(scaled, squares, scaled, factor);
  const __m512 student = lanes::rounded_product(_mm512_loadu_ps(by.student.data() + lane), factor);
  __m512 teacher = _mm512_setzero_ps();
  if constexpr (kTeacher) {
    teacher = lanes::rounded_product(_mm512_loadu_ps(by.teacher.data() + lane),
                                     _mm512_loadu_ps(q + lane));
  }
  const __m512 gap = student - teacher;  // of equal factors exactly 0
  // The pairs of two vectors that were rounded one behind the other.
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t begin = 0; begin < tokens; begin += kTokens) {
    const int64_t count = std::min(tokens - begin, kTokens);
    const auto at = [&](int64_t token) BF16_TARGET {
      if (token >= count) return _mm512_setzero_ps();
      __builtin_prefetch(kept + (begin + token + 64) * kLanes, 0, 3);
      const uint32_t* const from = kept + (begin + token) * kLanes;
      const __m512i words = _mm512_loadu_si512(from);
      __m512 values = (__m512)words, rest = gap * values;
      if constexpr (kTeacher) {
        values = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
        rest = gap * values + teacher * _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
      }
      return task * _mm512_mask_mul_ps(values, squares, values, values) + rest;
    };
    Words words[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i) {
      const __m512i both = lanes::rounded(at(2 * i), at(2 * i + 1));
      words[i] = reinterpret_cast<Words>(_mm512_permutexvar_epi16(pairs, both));
    }
    transpose_words(words);
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i) {
      *reinterpret_cast<Words*>(dz + i * ld + begin) = words[i];
    }
  }
}

// The largest of each lane of logits of the group, at least -FLT_MAX. With k > 0 bounds (k,lanes)
// hold the k largest of what they have seen of each lane, in order: maxima of disjoint sets of
// tokens, so that k logits at least are no smaller than the last of them. They begin as -infinity.
AVX512_TARGET inline void lane_maxima(const float* logits, const TokenGroup& group, float* maxima,
                                      int64_t k = 0, float* bounds = nullptr) {
  for (int64_t lane = 0; lane < group.lanes; lane += kLanes) {
    const float* const from = logits + group.offset(lane, 0);
    float* const last = k > 0 ? bounds + (k - 1) * group.lanes + lane : nullptr;
    __m512 most = lanes::all(-FLT_MAX);
    for (int64_t begin = 0, end = 0; begin < group.tokens; begin = end) {
      // Few tokens at a time at first, so that there is a bound early.
      const int64_t count = !last ? group.tokens : last[0] > -kInfinity ? kTokens : 4;
      end = std::min(group.tokens, begin + count);
      const __m512 next = largest(from, begin, end, kPanelLanes);
      most = _mm512_max_ps(most, next);
      if (!last) continue;
      // It takes the place of the last one, and rises while it is larger than the one above it.
      __m512 rising = _mm512_max_ps(_mm512_loadu_ps(last), next);
      _mm512_storeu_ps(last, rising);
      for (int64_t i = k - 1; i > 0; --i) {
        float* const at = bounds + i * group.lanes + lane;
        const __m512 above = _mm512_loadu_ps(at - group.lanes);
        if (_mm512_cmp_ps_mask(rising, above, _CMP_GT_OQ) == 0) break;
        _mm512_storeu_ps(at, _mm512_min_ps(above, rising));
        rising = _mm512_max_ps(above, rising);
        _mm512_storeu_ps(at - group.lanes, rising);
      }
    }
    _mm512_storeu_ps(maxima + lane, most);
  }
}

}  // namespace balora::head
