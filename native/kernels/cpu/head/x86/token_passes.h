// Passes over logits that lie by token, a lane for each row of the batch, so that sums and maxima
// need no look across a vector, and products by the head need none of it packed (by_token.cc).
// A group of tokens gets its exponentials while it is in a cache, less the group's own maxima; what
// is kept of it is rescaled by lane when those of all groups are known. With e^((z - largest) / T)
// and e^((y - largest of y) / T) of student and teacher as x and q, there are kept x and x - q as
// f16, whose error is below that of a row of dz in bf16, by its largest elements; x in f32 where
// there are no teacher's logits.
#pragma once
#include <algorithm>
#include <array>
#include <cfloat>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/cpu/runtime/x86/lanes.h"
#include "kernels/cpu/runtime/x86/targets.h"
#include "kernels/shared/divergence.h"
#include "tensor/dtype.h"

namespace balora::head {

constexpr int64_t kLanes = 16;       // of a vector
constexpr int64_t kPanelLanes = 32;  // numbers of lanes are multiples of it

// Logits of the student and a teacher, as products leave them: (panels,tokens,32), panels
// `panel_step` apart.
struct TokenGroup {
  const float* z;
  const float* y;  // null: none
  int64_t panel_step, tokens, lanes;
  int64_t first;  // token of the vocabulary

  // Elements from z or y to a lane's logit.
  int64_t offset(int64_t lane, int64_t token) const {
    return lane / kPanelLanes * panel_step + token * kPanelLanes + lane % kPanelLanes;
  }
};

// A logit that is among the K largest of its lane, perhaps, and the teacher's beside it.
struct LaneCandidate {
  int32_t lane, token;
  float value, teacher;
};

// By lane: the maxima of the group, 1 / T of it, and a bound of the K largest; masks of a vector's
// lanes each: those with a teacher, whose q is taken for 0 in others, and with candidates.
struct KeptLanes {
  const float *z, *y, *scale, *bound;
  const uint16_t *compared, *ranked;
};

// KeptSums (head.h) by lane: (kLaneSums,lanes).
constexpr int64_t kLaneSums = 5;
template <typename T>
struct LaneSums {
  T *student, *squares, *teacher, *gap, *rest;

  static LaneSums of(T* sums, int64_t lanes) {
    return {sums, sums + lanes, sums + 2 * lanes, sums + 3 * lanes, sums + 4 * lanes};
  }
};

// Maxima and sums of `count` groups in order. For a vector of lanes combine_groups() makes of them
// its shifts and its sums over all groups, and in the place of the maxima the factors of each
// group's x and q.
struct GroupedLanes {
  float *z, *y;                // (count, lanes); y null: no teacher
  float* sums;                 // (count, kLaneSums, lanes), as LaneSums has them
  int64_t count, step, lanes;  // step: from one group's z or y to the next one's
};

// By lane: KeptGradient (head.h) with the factor of q for the gap; `squares` as masks.
struct LaneGradients {
  const float *task, *student, *teacher;
  const uint16_t* squares;
  bool has_teacher;
};

constexpr int64_t kTokens = 32;  // whose sums are taken by themselves; also a line of dz
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// e^((x - shift) scale), `scale` a power of two.
struct Exponentials {
  __m512 shift, factor;

  AVX512_TARGET Exponentials(__m512 shift, const float* scale)
      : shift(shift), factor(_mm512_mul_ps(_mm512_loadu_ps(scale), lanes::all(vec::kLog2e))) {}

  AVX512_TARGET BALORA_INLINE __m512 of(__m512 x) const {
    return lanes::exp_difference(x, shift, factor);
  }
};

// The largest of each lane in the tokens [begin, end); the second operand where one is NaN.
AVX512_TARGET BALORA_INLINE __m512 largest(const float* logits, int64_t begin, int64_t end) {
  __m512 most[4];  // which do not wait for each other
  for (auto& value : most) value = lanes::all(-kInfinity);
  for (int64_t token = begin; token < end; token += 4) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      const float* const from = logits + std::min(token + i, end - 1) * kPanelLanes;
      most[i] = _mm512_max_ps(_mm512_loadu_ps(from), most[i]);
    }
  }
  return _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
}

inline void record(const float* z, const float* y, uint32_t which, int64_t lane, int64_t token,
                   std::vector<LaneCandidate>& found) {
  for (; which != 0; which &= which - 1) {
    const int i = __builtin_ctz(which);
    found.push_back(
        {static_cast<int32_t>(lane + i), static_cast<int32_t>(token), z[i], y ? y[i] : 0.0f});
  }
}

// The functions of kernels/shared/divergence.h by lane.
AVX512_TARGET BALORA_INLINE __m512 exp_series_of(__m512 x) {
  __m512 p = _mm512_fmadd_ps(x, lanes::all(1.0f / 120), lanes::all(1.0f / 24));
  p = _mm512_fmadd_ps(p, x, lanes::all(1.0f / 6));
  return _mm512_fmadd_ps(p, x, lanes::all(0.5f));
}
AVX512_TARGET BALORA_INLINE __mmask16 outside_series(__m512 x) {
  constexpr auto kRange = static_cast<float>(kSeriesRange);
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), lanes::all(kRange), _CMP_NLT_UQ);  // NaN, too
}
AVX512_TARGET BALORA_INLINE __m512 divergence_rest_of(__m512 q, __m512 x, __m512 w) {
  const __m512 minus = _mm512_sub_ps(_mm512_setzero_ps(), w);
  const __m512 series = _mm512_mul_ps(q, _mm512_mul_ps(_mm512_mul_ps(w, w), exp_series_of(minus)));
  const __mmask16 outside = outside_series(w);
  if (outside == 0) return series;
  return _mm512_mask_mov_ps(series, outside, _mm512_fmadd_ps(q, w, _mm512_sub_ps(x, q)));
}
AVX512_TARGET BALORA_INLINE __m512 exp_difference_of(__m512 q, __m512 x, __m512 u) {
  const __m512 square = _mm512_mul_ps(u, u);
  const __m512 series = _mm512_mul_ps(q, _mm512_fmadd_ps(square, exp_series_of(u), u));
  return _mm512_mask_sub_ps(series, outside_series(u), x, q);
}

// The sums of a vector of lanes: of up to kTokens tokens, and of those before them.
struct Sums {
  __m512 student, squares, teacher, gap, rest;

  AVX512_TARGET static Sums zero() {
    const __m512 none = _mm512_setzero_ps();
    return {none, none, none, none, none};
  }
  AVX512_TARGET BALORA_INLINE void add(const Sums& more) {
    student = _mm512_add_ps(student, more.student);
    squares = _mm512_add_ps(squares, more.squares);
    teacher = _mm512_add_ps(teacher, more.teacher);
    gap = _mm512_add_ps(gap, more.gap);
    rest = _mm512_add_ps(rest, more.rest);
  }
};

// Shifts, bounds and masks of a vector of lanes.
struct VectorShifts {
  Exponentials student, teacher;
  __m512 centre, scale, bound;
  __mmask16 compared, ranked;

  AVX512_TARGET VectorShifts(const KeptLanes& by, int64_t lane, bool has_teacher)
      : student(_mm512_loadu_ps(by.z + lane), by.scale + lane),
        teacher(_mm512_loadu_ps((has_teacher ? by.y : by.z) + lane), by.scale + lane),
        centre(_mm512_sub_ps(teacher.shift, student.shift)),
        scale(_mm512_loadu_ps(by.scale + lane)),
        bound(_mm512_loadu_ps(by.bound + lane)),
        compared(by.compared[lane / kLanes]),
        ranked(by.ranked[lane / kLanes]) {}
};

// The tokens [begin, end) of a vector of lanes; returns their sums.
template <bool kTeacher>
AVX512_TARGET Sums keep_tokens(const TokenGroup& group, const VectorShifts& by, int64_t lane,
                               int64_t begin, int64_t end, uint32_t* to,
                               std::vector<LaneCandidate>& found) {
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const int64_t at = group.offset(lane, 0);
  const float* const z = group.z + at;
  const float* const y = kTeacher ? group.y + at : nullptr;
  Sums sums = Sums::zero();
  for (int64_t token = begin; token < end; ++token) {
    const int64_t offset = token * kPanelLanes;
    const __m512 logits = _mm512_loadu_ps(z + offset);
    const uint32_t large = _mm512_mask_cmp_ps_mask(by.ranked, logits, by.bound, _CMP_GE_OQ);
    if (large != 0) [[unlikely]] {
      record(z + offset, kTeacher ? y + offset : nullptr, large, lane, group.first + token, found);
    }
    const __m512 x = by.student.of(logits);
    sums.student = _mm512_add_ps(sums.student, x);
    sums.squares = _mm512_fmadd_ps(x, x, sums.squares);
    if constexpr (kTeacher) {
      const __m512 teachers = _mm512_loadu_ps(y + offset);
      const __m512 q = _mm512_maskz_mov_ps(by.compared, by.teacher.of(teachers));
      sums.teacher = _mm512_add_ps(sums.teacher, q);
      const __m512 apart = _mm512_sub_ps(_mm512_sub_ps(teachers, logits), by.centre);
      const __m512 w = _mm512_maskz_mul_ps(by.compared, apart, by.scale);
      sums.gap = _mm512_fmadd_ps(q, w, sums.gap);
      sums.rest = _mm512_add_ps(sums.rest, divergence_rest_of(q, x, w));
      const __m256i low = _mm512_cvtps_ph(x, kRound);
      const __m256i high = _mm512_cvtps_ph(_mm512_sub_ps(x, q), kRound);
      _mm512_storeu_si512(to + token * kLanes,
                          _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
    } else {
      _mm512_storeu_ps(to + token * kLanes, x);
    }
  }
  return sums;
}

template <bool kTeacher>
AVX512_TARGET void keep_of(const TokenGroup& group, const KeptLanes& by, uint32_t* kept,
                           int64_t step, const LaneSums<float>& sums,
                           std::vector<LaneCandidate>& found) {
  for (int64_t panel = 0; panel < group.lanes; panel += kPanelLanes) {
    const VectorShifts shifts[2] = {{by, panel, kTeacher}, {by, panel + kLanes, kTeacher}};
    Sums all[2] = {Sums::zero(), Sums::zero()};
    for (int64_t begin = 0; begin < group.tokens; begin += kTokens) {
      const int64_t end = std::min(group.tokens, begin + kTokens);
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t lane = panel + half * kLanes;
        all[half].add(keep_tokens<kTeacher>(group, shifts[half], lane, begin, end,
                                            kept + lane / kLanes * step, found));
      }
    }
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t lane = panel + half * kLanes;
      _mm512_storeu_ps(sums.student + lane, all[half].student);
      _mm512_storeu_ps(sums.squares + lane, all[half].squares);
      _mm512_storeu_ps(sums.teacher + lane, all[half].teacher);
      _mm512_storeu_ps(sums.gap + lane, all[half].gap);
      _mm512_storeu_ps(sums.rest + lane, all[half].rest);
    }
  }
}

// A vector of sums in f64.
struct WideSum {
  __m512d low, high;

  AVX512_TARGET WideSum() : low(_mm512_setzero_pd()), high(_mm512_setzero_pd()) {}
  AVX512_TARGET BALORA_INLINE void add(__m512 factor, __m512 value) {
    low = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(factor)),
                          _mm512_cvtps_pd(_mm512_castps512_ps256(value)), low);
    high = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(factor, 1)),
                           _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)), high);
  }
  AVX512_TARGET BALORA_INLINE void store(double* to) const {
    _mm512_storeu_pd(to, low);
    _mm512_storeu_pd(to + 8, high);
  }
};

// The largest of all groups' maxima of a vector of lanes.
AVX512_TARGET inline __m512 largest_of_groups(const float* maxima, const GroupedLanes& groups) {
  __m512 most = lanes::all(-FLT_MAX);
  for (int64_t i = 0; i < groups.count; ++i) {
    most = _mm512_max_ps(_mm512_loadu_ps(maxima + i * groups.step), most);
  }
  return most;
}

// The factors of what is kept of a vector of lanes of one group.
template <bool kTeacher>
struct Factors {
  __m512 task, difference, gap;
  __mmask16 squares;

  AVX512_TARGET Factors(const LaneGradients& g, int64_t lane, const float* x, const float* q)
      : squares(g.squares[lane / kLanes]) {
    const __m512 factor = _mm512_loadu_ps(x + lane);
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(g.task + lane), factor);
    task = _mm512_mask_mul_ps(scaled, squares, scaled, factor);
    const __m512 student = lanes::rounded_product(_mm512_loadu_ps(g.student + lane), factor);
    difference = gap = student;
    if constexpr (kTeacher) {
      // Equal factors leave exactly 0.
      difference =
          lanes::rounded_product(_mm512_loadu_ps(g.teacher + lane), _mm512_loadu_ps(q + lane));
      gap = _mm512_sub_ps(student, difference);
    }
  }

  AVX512_TARGET BALORA_INLINE __m512 gradient(const uint32_t* kept) const {
    __m512 x, rest;
    if constexpr (kTeacher) {
      const __m512i words = _mm512_loadu_si512(kept);
      x = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
      const __m512 less_q = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
      rest = _mm512_fmadd_ps(gap, x, _mm512_mul_ps(difference, less_q));
    } else {
      x = _mm512_loadu_ps(kept);
      rest = _mm512_mul_ps(gap, x);
    }
    return _mm512_fmadd_ps(task, _mm512_mask_mul_ps(x, squares, x, x), rest);
  }
};

template <bool kTeacher>
BF16_TARGET void gradients_of(const uint32_t* kept, int64_t tokens,
                              const Factors<kTeacher>& factors, bf16* dz, int64_t ld) {
  // The pairs of two vectors that were rounded one behind the other.
  alignas(64) static constexpr auto kPairs = [] {
    std::array<uint16_t, 32> order{};
    for (uint16_t i = 0; i < 16; ++i) {
      order[2 * i] = i, order[2 * i + 1] = static_cast<uint16_t>(i + 16);
    }
    return order;
  }();
  const __m512i pairs = _mm512_load_si512(kPairs.data());
  for (int64_t begin = 0; begin < tokens; begin += kTokens) {
    const int64_t count = std::min(tokens - begin, kTokens);
    const auto at = [&](int64_t token) BF16_TARGET {
      if (token >= count) return _mm512_setzero_ps();
      __builtin_prefetch(kept + (begin + token + 64) * kLanes, 0, 3);
      return factors.gradient(kept + (begin + token) * kLanes);
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

// The largest of each lane of z, at least -FLT_MAX.
AVX512_TARGET inline void lane_maxima(const float* z, const TokenGroup& group, float* maxima) {
  for (int64_t lane = 0; lane < group.lanes; lane += kLanes) {
    const __m512 most = largest(z + group.offset(lane, 0), 0, group.tokens);
    _mm512_storeu_ps(maxima + lane, _mm512_max_ps(most, lanes::all(-FLT_MAX)));
  }
}

// The same of the group's z; and bounds (k,lanes) hold the k largest of what they have seen of each
// lane, in order: maxima of disjoint sets of tokens, so that k logits at least are no smaller than
// the last of them. They begin as -infinity.
AVX512_TARGET inline void rank_maxima(const TokenGroup& group, int64_t k, float* bounds,
                                      float* maxima) {
  for (int64_t lane = 0; lane < group.lanes; lane += kLanes) {
    const float* const logits = group.z + group.offset(lane, 0);
    float* const last = bounds + (k - 1) * group.lanes + lane;
    __m512 most = lanes::all(-FLT_MAX);
    for (int64_t begin = 0; begin < group.tokens;) {
      // Few tokens at a time at first, so that there is a bound early.
      const bool complete = last[0] > -kInfinity;
      const int64_t end = std::min(group.tokens, begin + (complete ? kTokens : 4));
      const __m512 next = largest(logits, begin, end);
      most = _mm512_max_ps(most, next);
      begin = end;
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

// Writes what is kept of a group, (lanes / 16, tokens, 16) words, `step` words from one vector of
// lanes to the next one, and the sums of the group.
inline void keep_lanes(const TokenGroup& group, const KeptLanes& lanes, uint32_t* kept,
                       int64_t step, const LaneSums<float>& sums,
                       std::vector<LaneCandidate>& found) {
  if (group.y) {
    keep_of<true>(group, lanes, kept, step, sums, found);
  } else {
    keep_of<false>(group, lanes, kept, step, sums, found);
  }
}

// See GroupedLanes.
AVX512_TARGET inline void combine_groups(const GroupedLanes& groups, int64_t lane,
                                         const float* scale, float* shift_z, float* shift_y,
                                         const LaneSums<double>& sums) {
  float* const z = groups.z + lane;
  float* const y = groups.y ? groups.y + lane : nullptr;
  const __m512 largest_z = largest_of_groups(z, groups);
  const __m512 largest_y = y ? largest_of_groups(y, groups) : _mm512_setzero_ps();
  const Exponentials student_of(largest_z, scale + lane), teacher_of(largest_y, scale + lane);
  const __m512 by_scale = _mm512_loadu_ps(scale + lane);
  const __m512 centre = _mm512_sub_ps(largest_y, largest_z);
  WideSum student, squares, teacher, gap, rest;
  for (int64_t i = 0; i < groups.count; ++i) {
    const auto of =
        LaneSums<float>::of(groups.sums + i * kLaneSums * groups.lanes + lane, groups.lanes);
    const __m512 own_z = _mm512_loadu_ps(z + i * groups.step);
    const __m512 factor = student_of.of(own_z);
    student.add(factor, _mm512_loadu_ps(of.student));
    squares.add(_mm512_mul_ps(factor, factor), _mm512_loadu_ps(of.squares));
    _mm512_storeu_ps(z + i * groups.step, factor);
    if (!y) continue;
    const __m512 own_y = _mm512_loadu_ps(y + i * groups.step);
    const __m512 factor_q = teacher_of.of(own_y);
    // The centre moves by h T, so that factor = factor_q e^-h:
    //   sum q (e^-(w+h) - 1 + w + h) = e^-h rest + (e^-h - 1 + h) teacher - (e^-h - 1) gap
    const __m512 own_centre = _mm512_sub_ps(own_y, own_z);
    const __m512 h = _mm512_mul_ps(_mm512_sub_ps(own_centre, centre), by_scale);
    const __m512 less_h = _mm512_sub_ps(_mm512_setzero_ps(), h);
    const __m512 weight = _mm512_loadu_ps(of.teacher), of_gap = _mm512_loadu_ps(of.gap);
    teacher.add(factor_q, weight);
    gap.add(factor_q, of_gap);
    gap.add(_mm512_mul_ps(factor_q, h), weight);
    rest.add(factor, _mm512_loadu_ps(of.rest));
    rest.add(divergence_rest_of(factor_q, factor, h), weight);
    rest.add(exp_difference_of(factor_q, factor, less_h),
             _mm512_sub_ps(_mm512_setzero_ps(), of_gap));
    _mm512_storeu_ps(y + i * groups.step, factor_q);
  }
  _mm512_storeu_ps(shift_z + lane, largest_z);
  _mm512_storeu_ps(shift_y + lane, largest_y);
  student.store(sums.student + lane);
  squares.store(sums.squares + lane);
  teacher.store(sums.teacher + lane);
  gap.store(sums.gap + lane);
  rest.store(sums.rest + lane);
}

// dz (16,tokens) of a vector of lanes, rows ld apart, from what is kept of `tokens` tokens and the
// factors of its group: rounded, and filled up with zeros to a multiple of 32 tokens.
AVX512_TARGET inline void lane_gradients(const uint32_t* kept, int64_t tokens, int64_t lane,
                                         const LaneGradients& g, const float* factors_x,
                                         const float* factors_q, bf16* dz, int64_t ld) {
  if (g.has_teacher) {
    gradients_of<true>(kept, tokens, {g, lane, factors_x, factors_q}, dz, ld);
  } else {
    gradients_of<false>(kept, tokens, {g, lane, factors_x, factors_q}, dz, ld);
  }
}

}  // namespace balora::head
