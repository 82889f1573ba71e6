// Blocks of products of rows_bf16.h, and the exponentials that run between them. To be inlined into
// functions that are compiled for AVX512-BF16.
#pragma once
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention/rows_bf16.h"
#include "kernels/cpu/products/tiles_target.h"
#include "kernels/cpu/runtime/x86/lanes.h"

#ifdef BALORA_TILES
#include "kernels/cpu/products/x86/pair_block.h"

namespace balora::attention::rows {

using balora::lanes::all;
using balora::lanes::exp_difference;
using balora::lanes::first32;
using balora::lanes::rounded;
using balora::lanes::rounded_product;
using tile_block::Left;

// Lambdas that run between products must be inlined among them.
#define MEANWHILE BF16_TARGET __attribute__((always_inline))

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int64_t kBlock = 4;   // rows of a block of products
constexpr int64_t kLanes = 16;  // of a vector
constexpr int64_t kVectors = kTile / kLanes;
// Maxima or log-sum-exps so large that their scores must not be scaled in base 2, where one
// instruction scales and subtracts: at this size that costs 1e-4 of a probability.
constexpr float kLarge = 1024.0f;
// The largest sum of exponentials whose maximum need not rise: a little less than e^kSlack, so that
// no term of it passes that maximum by more than kSlack. A NaN remains one by any path.
constexpr float kMost = 2.64e10f;
static_assert(kSlack<bf16> == 24.0f);

using Sums = __m512[kBlock][kVectors];

// 2^x = 2^floor(x) 2^(i/16) 2^r, where i/16 is what of the fraction of x is whole sixteenths, and
// 2^r the polynomial that is nearest to it in [0, 1/16]: each of its terms, times 2^(i/16), is in a
// table, since multiplications are what counts.
template <size_t kTerms>
struct Tables {
  alignas(64) std::array<std::array<float, 16>, kTerms> terms;
};
template <size_t kTerms>
constexpr Tables<kTerms> tables_of(const std::array<double, kTerms>& polynomial) {
  Tables<kTerms> tables{};
  double power = 1;
  for (size_t i = 0; i < 16; ++i, power *= 1.0442737824274138) {
    for (size_t n = 0; n < kTerms; ++n) {
      tables.terms[n][i] = static_cast<float>(power * polynomial[n]);
    }
  }
  return tables;
}
// Within 4.3e-7 of its value: log-sum-exps are as exact.
constexpr Tables<3> kQuadratic = tables_of<3>({1.00000042, 0.69302419, 0.24547958});
// Within 1.2e-4, where rounding to bf16 may change 2e-3.
constexpr Tables<2> kLine = tables_of<2>({0.9998827, 0.7082974});

// Two exponentials in base 2, in stages that stand between products, so that none waits for the one
// before. 0 for -infinity; keeps NaN.
template <size_t kTerms>
struct Exponentials {
  __m512 x[2], r[2];
  __m512i sixteenths[2];

  BF16_TARGET BALORA_INLINE void start(__m512 low, __m512 high) { x[0] = low, x[1] = high; }
  BF16_TARGET BALORA_INLINE void split() {
    // Below 2^18 the last bits of such a sum are the sixteenths of x, rounded down; from there on
    // only its power of two counts.
    const __m512 shift = all(0x1.8p19f);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      sixteenths[i] =
          (__m512i)_mm512_add_round_ps(x[i], shift, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
      r[i] = _mm512_reduce_ps(x[i], 4 << 4 | _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    }
  }
  BF16_TARGET BALORA_INLINE void look_up(const Tables<kTerms>& tables) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      __m512 sum = term(tables, i, kTerms - 1);
#pragma GCC unroll 2
      for (size_t n = kTerms - 1; n > 0; --n) {
        sum = _mm512_fmadd_ps(sum, r[i], term(tables, i, n - 1));
      }
      r[i] = sum;
    }
  }
  BF16_TARGET BALORA_INLINE void finish() {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) x[i] = _mm512_scalef_ps(r[i], x[i]);
  }

 private:
  BF16_TARGET BALORA_INLINE __m512 term(const Tables<kTerms>& tables, int i, size_t n) const {
    return _mm512_permutexvar_ps(sixteenths[i], _mm512_load_ps(tables.terms[n].data()));
  }
};

BF16_TARGET BALORA_INLINE __m512 base_2_scale(double scale) {
  return all(static_cast<float>(scale) * vec::kLog2e);
}

// e^(score * scale - less) of a row. A query's are the same bits wherever they are computed, so
// whether `less` is large is a matter of its own.
template <bool kSomeLarge, size_t kTerms>
BF16_TARGET BALORA_INLINE __m512 probability(const Tables<kTerms>& tables, double scale, float less,
                                             float base_2, __m512 score) {
  if (kSomeLarge && !(std::abs(less) <= kLarge)) {
    const __m512 natural = all(static_cast<float>(scale));
    return exp_difference(rounded_product(score, natural), all(less));
  }
  const __m512 x = _mm512_fmsub_ps(score, base_2_scale(scale), all(base_2));
  Exponentials<kTerms> e;
  e.start(x, x), e.split(), e.look_up(tables), e.finish();
  return e.x[0];
}

// False where one of kTile maxima or log-sum-exps is too large to be scaled in base 2.
BF16_TARGET BALORA_INLINE bool small_enough(const float* natural) {
  __mmask16 large = 0;
  for (int64_t i = 0; i < kTile; i += kLanes) {
    const __m512 size = _mm512_abs_ps(_mm512_load_ps(natural + i));
    large |= _mm512_cmp_ps_mask(size, all(kLarge), _CMP_NLE_UQ);
  }
  return !large;
}

struct Plus {
  BF16_TARGET BALORA_INLINE __m512 operator()(__m512 x, __m512 y) const {
    return _mm512_add_ps(x, y);
  }
};
struct Most {
  BF16_TARGET BALORA_INLINE __m512 operator()(__m512 x, __m512 y) const {
    return _mm512_max_ps(x, y);
  }
};

// Lane i of the result: `combine` over the lanes of rows[i]. Each step halves the vectors.
template <typename Combine>
BF16_TARGET BALORA_INLINE __m512 across_lanes(const __m512 (&rows)[16], const Combine& combine) {
  __m512 eight[8], four[4], two[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    eight[i] = combine(_mm512_shuffle_f32x4(rows[i], rows[i + 8], 0x44),
                       _mm512_shuffle_f32x4(rows[i], rows[i + 8], 0xee));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    four[i] = combine(_mm512_shuffle_f32x4(eight[i], eight[i + 4], 0x88),
                      _mm512_shuffle_f32x4(eight[i], eight[i + 4], 0xdd));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    two[i] =
        combine(_mm512_unpacklo_ps(four[i], four[i + 2]), _mm512_unpackhi_ps(four[i], four[i + 2]));
  }
  const __m512 one =
      combine(_mm512_unpacklo_ps(two[0], two[1]), _mm512_unpackhi_ps(two[0], two[1]));
  // Quarters hold rows from 0, 8, 4 and 12 on.
  return _mm512_shuffle_f32x4(one, one, 0xd8);
}

// Stores sums as what an addition gives: as they are, they would occupy their registers until the
// last of them is written.
template <int kRows, int kColumns>
BF16_TARGET BALORA_INLINE void keep(const __m512 (&sums)[kRows][kColumns], float* to) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) {
      _mm512_store_ps(to + r * kTile + v * kLanes, _mm512_add_ps(sums[r][v], _mm512_setzero_ps()));
    }
  }
}

// The steps of half a quarter of a block's products, in which four stages of something else run.
template <int kSteps>
constexpr int64_t kSlots = kSteps == 0 ? 4 : kSteps;

// The products of a block of rows with all of a tile, while meanwhile(quarter, step) runs: for each
// quarter of the products, steps 0 to 2 * kSlots - 1. kSteps is a sixteenth of the size, or 0 for
// any size, whose meanwhile() follows the products.
template <int kSteps, typename Meanwhile>
BF16_TARGET BALORA_INLINE void block_products(Operand a, int64_t row, const bf16* b, int64_t size,
                                              Sums& sums, const Meanwhile& meanwhile) {
  const bf16* left = a.data + row * a.stride;
  if constexpr (kSteps == 0) {
    tile_block::pair_products(size, left, a.stride, b, kTile, sums);
    for (int64_t quarter = 0; quarter < 4; ++quarter) {
      for (int64_t step = 0; step < 2 * kSlots<kSteps>; ++step) meanwhile(quarter, step);
    }
  } else {
    tile_block::clear(sums);
#pragma GCC unroll 1
    for (int64_t quarter = 0; quarter < 4; ++quarter) {
      tile_block::add_pairs<Left::kRows, 2 * kSteps>(left, a.stride, b, kTile, sums,
                                                     [&](int64_t step)
                                                         MEANWHILE { meanwhile(quarter, step); });
      left += 4 * kSteps, b += 4 * kSteps * kTile;
    }
  }
}

// Calls body(std::integral_constant<int, kSteps>) for the sizes of most models, and 0 for others.
template <typename Body>
void for_size(int64_t size, const Body& body) {
  if (size == 64) return body(std::integral_constant<int, 4>{});
  if (size == 128) return body(std::integral_constant<int, 8>{});
  body(std::integral_constant<int, 0>{});
}

// Whether a step of half a quarter is the one at which a stage of four runs.
template <int kSteps>
BALORA_INLINE bool is_stage(int64_t step, int64_t stage) {
  return step % kSlots<kSteps> == stage * kSlots<kSteps> / 4;
}

}  // namespace balora::attention::rows
#endif
