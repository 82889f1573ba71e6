// Low-rank parts as one more stretch of k in an AMX product. With u = u_hi + u_lo and b = b_hi +
// b_lo (16 bits each in bf16 pairs) a part is u_hi b_hi + u_lo b_hi + u_hi b_lo: three stretches of
// R; what is left out is below 2^-16 of it. Two parts of equal rank are interleaved, one on the
// even k and one on the odd: AMX sums those apart, so parts that are each other's negative cancel
// to an exact zero (a PiSSA pair before its first step).
#pragma once
#include <cstdint>
#include <span>

#include "kernels/cpu/amx.h"

namespace balora {

// scale * u (m,R) b (R,n); b's element (r,j) at b[r * k_stride + j * n_stride].
struct FactorTerm {
  const float* u;
  int64_t ldu;
  const float* b;
  int64_t rank;
  int64_t n_stride, k_stride;
  float scale;
};

// k of the stretch, a multiple of 32.
int64_t factor_columns(std::span<const FactorTerm> factors);

// Writes the stretch's two sides: a (m, factor_columns) and the tiles of b.
TileTerm split_factors(Context* ctx, std::span<const FactorTerm> factors, int64_t m, int64_t n,
                       bf16* a, bf16* tiles);

}  // namespace balora
