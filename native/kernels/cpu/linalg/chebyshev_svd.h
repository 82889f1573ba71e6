// Low-rank SVDs of weights of f32 precision or less, many times faster than krylov.h's in f64:
//   1. Subspace iteration on A^T A in low precision (low_precision_gram.h), accelerated by
//      Chebyshev polynomials of degree 3 that are small on the unwanted part of the spectrum.
//   2. One power iteration and the Rayleigh-Ritz step with A itself in f32, its small problem in
//      f64. The power iteration is left out where the caller asks for a number of them that the
//      polynomials do with fewer products, and where A^T A has no rounding of A in it.
// Squares in f32 lose small values: chebyshev_svd checks its result and refuses where it is not
// good enough, and the caller uses krylov.h instead.
#pragma once
#include <cstdint>

#include "kernels/cpu/linalg/dense.h"
#include "kernels/cpu/linalg/low_precision_gram.h"

namespace balora {

struct LowRankProblem {
  WeightSource w;
  int64_t rank;
  int64_t niter;  // power iterations; negative: until the captured energy has converged
  int64_t oversample;
  uint64_t seed;
};

enum class SvdOutcome {
  kDone,
  kIllConditioned,  // fewer significant directions than columns, or values outside of f32's squares
  kSmallSigma,      // sigma_rank below 1e-3 sigma_1
  kSmallRest,  // A is within 5 % of rank `rank`: the energy's rounding is no longer small beside it
  kStalled,    // the captured energy did not converge
};

// Whether the shape and type are worth it; if not, do not call the others.
bool chebyshev_svd_fits(const LowRankProblem& problem);

// Bytes of scratch memory, aligned to 64, that chebyshev_svd needs.
int64_t chebyshev_svd_bytes(const LowRankProblem& problem);

// W ~ U diag(s) Vt; *result is written when the outcome is kDone. The captured energy is within
// krylov.h's bounds: with niter < 0 |W - U S Vt|_F <= optimum (1 + 1e-5) + 1e-6 |W|_F, else what
// niter plain power iterations capture, or more, but for 1e-7 |W|_F of the norm left over.
SvdOutcome chebyshev_svd(const Context* ctx, const LowRankProblem& problem, void* scratch,
                         SvdResult* result);

}  // namespace balora
