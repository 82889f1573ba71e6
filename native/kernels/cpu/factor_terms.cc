// factor_terms.h
#include "kernels/cpu/factor_terms.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace balora {
namespace {

// u as bf16 pairs: hi, lo, hi again, each R elements `step` apart.
BALORA_INLINE void split_row(const float* u, int64_t rank, int64_t step, bf16* to) {
#pragma omp simd
  for (int64_t r = 0; r < rank; ++r) {
    const bf16 high = to_bf16(u[r]);
    to[r * step] = high;
    to[(rank + r) * step] = to_bf16(u[r] - to_float(high));
    to[(2 * rank + r) * step] = high;
  }
}

BALORA_SIMD void split_rows(const FactorTerm& factor, int64_t step, int64_t ld, int64_t begin,
                            int64_t end, bf16* to) {
  for (int64_t i = begin; i < end; ++i) {
    split_row(factor.u + i * factor.ldu, factor.rank, step, to + i * ld);
  }
}

// How many of the parts from `first` on are interleaved: two of equal rank, or one alone.
size_t interleaved(std::span<const FactorTerm> factors, size_t first) {
  return first + 1 < factors.size() && factors[first].rank == factors[first + 1].rank ? 2 : 1;
}

}  // namespace

int64_t factor_columns(std::span<const FactorTerm> factors) {
  int64_t k = 0;
  for (size_t f = 0; f < factors.size(); f += interleaved(factors, f)) {
    k = round_up(k, 2) + 3 * factors[f].rank * static_cast<int64_t>(interleaved(factors, f));
  }
  return round_up(k, kTileK);
}

TileTerm split_factors(Context* ctx, std::span<const FactorTerm> factors, int64_t m, int64_t n,
                       bf16* a, bf16* tiles) {
  const int64_t k = factor_columns(factors);
  std::vector<FactorLine> rows(static_cast<size_t>(k));
  struct Place {
    const FactorTerm* factor;
    int64_t first, step;
  };
  std::vector<Place> places;
  int64_t at = 0;
  for (size_t f = 0; f < factors.size();) {
    const auto step = static_cast<int64_t>(interleaved(factors, f));
    at = round_up(at, 2);
    for (int64_t part = 0; part < step; ++part, ++f) {
      const FactorTerm& factor = factors[f];
      places.push_back({&factor, at + part, step});
      for (int64_t r = 0; r < 3 * factor.rank; ++r) {
        const Half half = r < 2 * factor.rank ? Half::kHigh : Half::kLow;
        rows[static_cast<size_t>(at + part + r * step)] = {
            factor.b + r % factor.rank * factor.k_stride, factor.n_stride, factor.scale, half};
      }
    }
    at += 3 * step * places.back().factor->rank;
  }
  pack_factor_rows(ctx, rows, n, tiles);
  parallel_for(ctx, m, 128, [&](int64_t begin, int64_t end) {
    // Columns that no part fills meet zeros in B, but must not be NaN.
    std::fill(a + begin * k, a + end * k, bf16{0});
    for (const Place& p : places) split_rows(*p.factor, p.step, k, begin, end, a + p.first);
  });
  return {a, k, k, tiles};
}

}  // namespace balora
