// The passes of the fused head losses over a row of logits, in f32 or f64; sums in f64 from blocks
// that f32 holds well. There are two ways through a row (head.h says when). Either the
// statistics leave the logits as they are and the gradient takes their exponentials again; or one
// pass writes e^((logit - largest) / T) over student's and teacher's logits while it sums them, and
// the gradient reads these: for T = 2 the distribution at T = 1 is their square.
#pragma once
#include <algorithm>
#include <limits>

#include "kernels/cpu/head/head.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/activations.h"

namespace balora::head {

// The square of a kept exponential, 0 where e^x itself would be left out as too small.
BALORA_INLINE float square_or_zero(float x) {
  constexpr float kLowest = 9.3576e-14f;  // e^(vec::kVanishing / 2)
  return x < kLowest ? 0.0f : x * x;
}
BALORA_INLINE double square_or_zero(double x) {
  return x * x;
}

template <typename A>
BALORA_INLINE A row_max(const A* x, int64_t n) {
  A best = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : best)
  for (int64_t i = 0; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// The largest of each block.
template <typename A>
BALORA_INLINE void block_maxima(const A* x, int64_t n, A* maxima) {
  for (int64_t first = 0; first < n; first += kBlock) {
    maxima[first / kBlock] = row_max(x + first, std::min(n - first, kBlock));
  }
}

// Adds all but z < least of the tokens [begin, end), in ascending order.
template <typename A>
BALORA_INLINE void add_candidates(const RowOperands<A>& o, int64_t begin, int64_t end, A least,
                                  std::vector<TopCandidate<A>>& to) {
  constexpr int64_t kGroup = 32;
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t last = std::min(end, first + kGroup);
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = first; i < last; ++i) any |= !(o.z[i] < least);
    if (!any) continue;
    for (int64_t i = first; i < last; ++i) {
      if (!(o.z[i] < least)) to.push_back({i, o.z[i], o.y ? o.y[i] : A(0)});
    }
  }
}

// The largest of y moved to where centre_offset() wants it, from those of both.
template <typename A>
BALORA_INLINE A teacher_shift(const A* z, const A* y, int64_t n, const PairShifts<A>& largest) {
  const int64_t step = centre_step(n), samples = n / step;
  const A centre = largest.y - largest.z;
  A weight = 0, value = 0;
#pragma omp simd reduction(+ : weight, value)
  for (int64_t i = 0; i < samples; ++i) {
    const A q = vexp_or_zero((y[i * step] - largest.y) * largest.scale);
    weight += q;
    value += q * ((y[i * step] - z[i * step]) - centre);
  }
  return largest.y + centre_offset(weight, value, static_cast<A>(step), largest.scale);
}

// sum w and sum w (x - shift), w = e^((x - shift) * scale)
template <typename A>
BALORA_INLINE WeightedSum entropy_sums(const A* x, int64_t n, A shift, A scale) {
  WeightedSum total{0, 0};
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A weight = 0, value = 0;
#pragma omp simd reduction(+ : weight, value)
    for (int64_t i = first; i < last; ++i) {
      const A offset = x[i] - shift, w = vexp_or_zero(offset * scale);
      weight += w;
      value += w * offset;
    }
    total.weight += static_cast<double>(weight);
    total.value += static_cast<double>(value);
  }
  return total;
}

// The sums of x and q of student's and teacher's logits, which are left in their place if kKeep; of
// the student alone without a teacher.
template <bool kTeacher, bool kKeep, typename A>
BALORA_INLINE KeptSums exp_sums(A* z, A* y, int64_t n, const PairShifts<A>& shifts) {
  const A centre = shifts.y - shifts.z;
  KeptSums total;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A student = 0, squares = 0, teacher = 0, gap = 0, rest = 0;
#pragma omp simd reduction(+ : student, squares, teacher, gap, rest)
    for (int64_t i = first; i < last; ++i) {
      const A x = vexp_or_zero((z[i] - shifts.z) * shifts.scale);
      student += x;
      if constexpr (kKeep) squares += square_or_zero(x);
      if constexpr (kTeacher) {
        const A w = ((y[i] - z[i]) - centre) * shifts.scale;
        const A q = vexp_or_zero((y[i] - shifts.y) * shifts.scale);
        teacher += q;
        gap += q * w;
        rest += divergence_rest(q, x, w);
        if constexpr (kKeep) y[i] = q;
      }
      if constexpr (kKeep) z[i] = x;
    }
    total.pair.student += static_cast<double>(student);
    total.squares += static_cast<double>(squares);
    total.pair.teacher += static_cast<double>(teacher);
    total.pair.gap += static_cast<double>(gap);
    total.pair.rest += static_cast<double>(rest);
  }
  return total;
}

// A block of dz from logits x and t; t null: there is no teacher.
template <typename A>
BALORA_INLINE void logits_block(const A* x, const A* t, int64_t n, const Gradient<A>& g, A* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] = 0;
  if (g.task != A(0)) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] = g.task * vexp_or_zero(x[i] - g.shift);
  }
  if (g.student != A(0) && !t) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      sum[i] += g.student * vexp_or_zero((x[i] - g.shift) * g.scale);
    }
  } else if (g.student != A(0)) {
    const A centre = g.teacher_shift - g.shift;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A p = g.student * vexp_or_zero((x[i] - g.shift) * g.scale),
              q = g.teacher * vexp_or_zero((t[i] - g.teacher_shift) * g.scale),
              w = ((t[i] - x[i]) - centre) * g.scale;
      sum[i] += exp_difference(q, p, -(w + g.log_ratio));
    }
  }
  if (g.diversity != A(0)) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A log_pi = (x[i] - g.shift) * g.entropy_scale - g.log_sum;
      sum[i] += g.diversity * vexp_or_zero(log_pi) * (log_pi + g.entropy);
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const A capped = x[i] * g.inverse_cap;
    sum[i] *= A(1) - capped * capped;
  }
}

// A block of dz from kept exponentials x and q; q null: there is no teacher, any q takes its place
// since gap is student.
//   task p + student (x - q) + gap q,  p = x, or x^2 if kSquares
// gap = student - teacher: x = q gives exactly 0 even with fused adds.
template <bool kSquares, typename A>
BALORA_INLINE void kept_block(const A* x, const A* q, int64_t n, const Gradient<A>& g, A* sum) {
  const A* const t = q ? q : x;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const A p = kSquares ? square_or_zero(x[i]) : x[i];
    sum[i] = g.task * p + (g.student * (x[i] - t[i]) + g.gap * t[i]);
  }
}

// The part of dz that all of V has, to `out`: z itself, or bf16 in the first half of its place.
template <typename A, typename Out>
BALORA_INLINE void dense_gradient(const A* z, const A* y, int64_t n, const Gradient<A>& g,
                                  Out* out) {
  A sum[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(n - first, kBlock);
    const A* t = y ? y + first : nullptr;
    if (!g.kept) {
      logits_block(z + first, t, count, g, sum);
    } else if (g.squares) {
      kept_block<true>(z + first, t, count, g, sum);
    } else {
      kept_block<false>(z + first, t, count, g, sum);
    }
    // An element is written no further on than it is read.
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[first + i] = store<Out>(sum[i]);
  }
}

// x -> cap tanh(scale x / cap); a cap of 0: scale x
template <typename A>
BALORA_INLINE void cap_row(A* x, int64_t n, A scale, A cap) {
  if (cap > A(0)) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = soft_capped<VectorMath>(scale * x[i], cap);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] *= scale;
  }
}

// q = factor e^((y - shift) * scale)
template <typename A>
BALORA_INLINE void scaled_exp(const A* y, int64_t n, A shift, A scale, A factor, A* q) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) q[i] = factor * vexp_or_zero((y[i] - shift) * scale);
}

}  // namespace balora::head
