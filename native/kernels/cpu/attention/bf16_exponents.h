// Probabilities of tiles of bf16 and the gradients of their scores, a vector at a time: inlined
// into functions for AVX512-BF16.
#pragma once
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/runtime/lanes.h"

#ifdef BALORA_TILES
namespace balora::attention::lanes {

// e^(score * scale - less) of 16 queries, of which a fused product and difference makes a power of
// 2. Maxima or log-sum-exps so `large` that this would cost 1e-4 of a probability want the scores
// scaled first. A query's are the same bits wherever they are computed, which is why that is a
// matter of its own and not of its neighbours.
struct Exponents {
  __m512 scale, less;
  __m512 base_2_scale, base_2_less;
  __mmask16 large;
};
BF16_TARGET BALORA_INLINE Exponents exponents_of(double scale, __m512 less) {
  const __m512 natural = balora::lanes::all(static_cast<float>(scale));
  const __m512 log2e = balora::lanes::all(vec::kLog2e);
  return {natural, less, _mm512_mul_ps(natural, log2e), _mm512_mul_ps(less, log2e),
          _mm512_cmp_ps_mask(_mm512_abs_ps(less), balora::lanes::all(1024.0f), _CMP_NLE_UQ)};
}
template <bool kSomeLarge>
BF16_TARGET BALORA_INLINE __m512 probabilities(const Exponents& e, __m512 score) {
  const __m512 most =
      balora::lanes::exp2_for_bf16(_mm512_fmsub_ps(score, e.base_2_scale, e.base_2_less));
  if constexpr (!kSomeLarge) return most;
  const __m512 exact =
      balora::lanes::exp_difference(balora::lanes::rounded_product(score, e.scale), e.less);
  return _mm512_mask_mov_ps(most, e.large, exact);
}

// 32 queries, and what all keys need of them.
struct QueryLanes {
  Exponents exponents[2];
  __m512 scaled_delta[2];

  bool some_large() const { return exponents[0].large || exponents[1].large; }
};
// Those of a tile from `column` on.
BF16_TARGET BALORA_INLINE QueryLanes query_lanes(const GradTile<bf16>& t, int64_t column) {
  QueryLanes q;
  for (int half = 0; half < 2; ++half) {
    const int64_t at = column + 16 * half;
    const __mmask16 there = balora::lanes::first16(t.queries - at);
    q.exponents[half] = exponents_of(t.geometry.scale, _mm512_maskz_loadu_ps(there, t.lse + at));
    q.scaled_delta[half] =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(there, t.delta + at), q.exponents[half].scale);
  }
  return q;
}

struct Gradients {
  __m512i p, ds;
};
// One key of 32 queries, of which kMasked has those that are `seen`.
template <bool kMasked, bool kSomeLarge>
BF16_TARGET BALORA_INLINE Gradients key_gradients(const QueryLanes& q, const float* scores,
                                                  const float* dp, uint32_t seen) {
  __m512 p[2], ds[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Exponents& e = q.exponents[half];
    p[half] = probabilities<kSomeLarge>(e, _mm512_load_ps(scores + 16 * half));
    const __m512 slope =
        _mm512_fmsub_ps(_mm512_load_ps(dp + 16 * half), e.scale, q.scaled_delta[half]);
    ds[half] = _mm512_mul_ps(p[half], slope);
    if (kMasked) {
      const auto there = static_cast<__mmask16>(seen >> 16 * half);
      p[half] = _mm512_maskz_mov_ps(there, p[half]);
      ds[half] = _mm512_maskz_mov_ps(there, ds[half]);
    }
  }
  return {balora::lanes::rounded(p[0], p[1]), balora::lanes::rounded(ds[0], ds[1])};
}

}  // namespace balora::attention::lanes
#endif
