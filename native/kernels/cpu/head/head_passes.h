// The passes of the fused head losses over a row of logits, in f32 or f64; sums in f64 from blocks
// that f32 holds well. There are two ways through a row (head_rows.h says when). Either the
// statistics leave the logits as they are and the gradient takes their exponentials again; or one
// pass writes e^((logit - largest) / T) over student's and teacher's logits while it sums them, and
// the gradient reads these: for T = 2 the distribution at T = 1 is their square.
#pragma once
#include <cstdint>

#include "kernels/shared/divergence.h"
#include "tensor/dtype.h"

namespace balora::head {

constexpr int64_t kBlock = 512;

inline int64_t blocks_of(int64_t n) {
  return (n + kBlock - 1) / kBlock;
}

struct WeightedSum {
  double weight, value;
};

// The largest of z and of y, or a shift of y near it, and 1 / T.
template <typename A>
struct PairShifts {
  A z, y, scale;
};

// Sums of x = e^((z - largest) / T), which is written over z, and of q, the same of y.
struct KeptSums {
  DivergenceSums pair;
  double squares = 0;  // of x
};

// dz = task p + student (x - q) + gap q of kept exponentials x and q, p = x, or x^2 if
// `squares`; task p + student x without q. gap = student - teacher: x = q gives exactly 0 even
// with fused adds.
template <typename A>
struct KeptGradient {
  A task, student, gap;
  bool squares;
};

// The dense part of dz from logits: each coefficient holds the reciprocal of its sum; zero leaves
// its exponentials out.
template <typename A>
struct DenseGradient {
  A shift, task;
  A scale, student, teacher, teacher_shift, log_ratio;  // DivergenceSums has the last
  A diversity, entropy_scale, log_sum, entropy;
  A inverse_cap;  // 0: no soft-capping
};

template <typename A>
A row_max(const A* x, int64_t n);
// The largest of each block, blocks_of(n) of them; returns that of all.
template <typename A>
A block_maxima(const A* x, int64_t n, A* maxima);
// Offsets of x >= least in ascending order, as many as are written to `found`.
template <typename A>
int64_t find_at_least(const A* x, int64_t n, A least, int32_t* found);
// sum e^((x - shift) * scale)
template <typename A>
double exp_sum(const A* x, int64_t n, A shift, A scale);
// The largest of y moved to where centre_offset() wants it, from those of both.
template <typename A>
A teacher_shift(const A* z, const A* y, int64_t n, const PairShifts<A>& largest);
template <typename A>
DivergenceSums divergence_sums(const A* z, const A* y, int64_t n, const PairShifts<A>& shifts);
// sum w and sum w (x - shift), w = e^((x - shift) * scale)
template <typename A>
WeightedSum entropy_sums(const A* x, int64_t n, A shift, A scale);
// z becomes the dense part of dz; y null: there is no teacher.
template <typename A>
void dense_gradient(A* z, const A* y, int64_t n, const DenseGradient<A>& g);
// y null: of the student alone.
template <typename A>
KeptSums keep_exponentials(A* z, A* y, int64_t n, const PairShifts<A>& shifts);
template <typename A>
void kept_gradient(A* z, const A* y, int64_t n, const KeptGradient<A>& g);
// q = factor e^((y - shift) * scale)
template <typename A>
void scaled_exp(const A* y, int64_t n, A shift, A scale, A factor, A* q);
// x -> cap tanh(x / cap)
template <typename A>
void cap_row(A* x, int64_t n, A cap);

// kept_gradient() rounded to bf16, into the first half of the row's own place.
void kept_gradient_rounded(float* z, const float* y, int64_t n, const KeptGradient<float>& g);

}  // namespace balora::head
