#include "kernels/cpu/head/head_passes.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/activations.h"

namespace balora::head {
namespace {

// The square of a kept exponential, 0 where e^x itself would be left out as too small.
BALORA_INLINE float square_or_zero(float x) {
  constexpr float kLowest = 9.3576e-14f;  // e^(vec::kVanishing / 2)
  return x < kLowest ? 0.0f : x * x;
}
BALORA_INLINE double square_or_zero(double x) {
  return x * x;
}

template <typename A>
BALORA_INLINE A max_of(const A* x, int64_t n) {
  A best = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : best)
  for (int64_t i = 0; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

template <typename A>
BALORA_INLINE A maxima_of(const A* x, int64_t n, A* maxima) {
  A best = -std::numeric_limits<A>::infinity();
  for (int64_t first = 0; first < n; first += kBlock) {
    const A highest = max_of(x + first, std::min(n - first, kBlock));
    maxima[first / kBlock] = highest;
    best = highest > best ? highest : best;
  }
  return best;
}

template <typename A>
BALORA_INLINE int64_t at_least_of(const A* x, int64_t n, A least, int32_t* found) {
  constexpr int64_t kGroup = 32;
  int64_t count = 0;
  for (int64_t first = 0; first < n; first += kGroup) {
    const int64_t last = std::min(n, first + kGroup);
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = first; i < last; ++i) any |= x[i] >= least;
    if (!any) continue;
    for (int64_t i = first; i < last; ++i) {
      if (x[i] >= least) found[count++] = static_cast<int32_t>(i);
    }
  }
  return count;
}

template <typename A>
BALORA_INLINE double exp_sum_of(const A* x, int64_t n, A shift, A scale) {
  double total = 0;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < last; ++i) sum += vexp_or_zero((x[i] - shift) * scale);
    total += static_cast<double>(sum);
  }
  return total;
}

template <typename A>
BALORA_INLINE A teacher_shift_of(const A* z, const A* y, int64_t n, const PairShifts<A>& largest) {
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

template <typename A>
BALORA_INLINE DivergenceSums divergence_sums_of(const A* z, const A* y, int64_t n,
                                                const PairShifts<A>& shifts) {
  const A centre = shifts.y - shifts.z;
  DivergenceSums total;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A student = 0, teacher = 0, gap = 0, rest = 0;
#pragma omp simd reduction(+ : student, teacher, gap, rest)
    for (int64_t i = first; i < last; ++i) {
      const A w = ((y[i] - z[i]) - centre) * shifts.scale;
      const A x = vexp_or_zero((z[i] - shifts.z) * shifts.scale);
      const A q = vexp_or_zero((y[i] - shifts.y) * shifts.scale);
      student += x;
      teacher += q;
      gap += q * w;
      rest += divergence_rest(q, x, w);
    }
    total.student += static_cast<double>(student);
    total.teacher += static_cast<double>(teacher);
    total.gap += static_cast<double>(gap);
    total.rest += static_cast<double>(rest);
  }
  return total;
}

template <typename A>
BALORA_INLINE WeightedSum entropy_sums_of(const A* x, int64_t n, A shift, A scale) {
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

template <typename A>
BALORA_INLINE void gradient_of(A* z, const A* y, int64_t n, const DenseGradient<A>& g) {
  A sum[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(n - first, kBlock);
    A* x = z + first;
    for (int64_t i = 0; i < count; ++i) sum[i] = 0;
    if (g.task != A(0)) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) sum[i] = g.task * vexp_or_zero(x[i] - g.shift);
    }
    if (g.student != A(0) && !y) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        sum[i] += g.student * vexp_or_zero((x[i] - g.shift) * g.scale);
      }
    } else if (g.student != A(0)) {
      const A* t = y + first;
      const A centre = g.teacher_shift - g.shift;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A p = g.student * vexp_or_zero((x[i] - g.shift) * g.scale),
                q = g.teacher * vexp_or_zero((t[i] - g.teacher_shift) * g.scale),
                w = ((t[i] - x[i]) - centre) * g.scale;
        sum[i] += exp_difference(q, p, -(w + g.log_ratio));
      }
    }
    if (g.diversity != A(0)) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A log_pi = (x[i] - g.shift) * g.entropy_scale - g.log_sum;
        sum[i] += g.diversity * vexp_or_zero(log_pi) * (log_pi + g.entropy);
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const A capped = x[i] * g.inverse_cap;
      x[i] = sum[i] * (A(1) - capped * capped);
    }
  }
}

template <typename A>
BALORA_INLINE KeptSums keep_pair_of(A* z, A* y, int64_t n, const PairShifts<A>& shifts) {
  const A centre = shifts.y - shifts.z;
  KeptSums total;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A student = 0, squares = 0, teacher = 0, gap = 0, rest = 0;
#pragma omp simd reduction(+ : student, squares, teacher, gap, rest)
    for (int64_t i = first; i < last; ++i) {
      const A w = ((y[i] - z[i]) - centre) * shifts.scale;
      const A x = vexp_or_zero((z[i] - shifts.z) * shifts.scale);
      const A q = vexp_or_zero((y[i] - shifts.y) * shifts.scale);
      student += x;
      squares += square_or_zero(x);
      teacher += q;
      gap += q * w;
      rest += divergence_rest(q, x, w);
      z[i] = x;
      y[i] = q;
    }
    total.pair.student += static_cast<double>(student);
    total.squares += static_cast<double>(squares);
    total.pair.teacher += static_cast<double>(teacher);
    total.pair.gap += static_cast<double>(gap);
    total.pair.rest += static_cast<double>(rest);
  }
  return total;
}

template <typename A>
BALORA_INLINE KeptSums keep_one_of(A* z, int64_t n, const PairShifts<A>& shifts) {
  KeptSums total;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A student = 0, squares = 0;
#pragma omp simd reduction(+ : student, squares)
    for (int64_t i = first; i < last; ++i) {
      const A x = vexp_or_zero((z[i] - shifts.z) * shifts.scale);
      student += x;
      squares += square_or_zero(x);
      z[i] = x;
    }
    total.pair.student += static_cast<double>(student);
    total.squares += static_cast<double>(squares);
  }
  return total;
}

// A block of kept_gradient() to `sum`.
template <bool kSquares, typename A>
BALORA_INLINE void kept_block(const A* z, const A* y, int64_t n, const KeptGradient<A>& g, A* sum) {
  if (y) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A p = kSquares ? square_or_zero(z[i]) : z[i];
      sum[i] = g.task * p + (g.student * (z[i] - y[i]) + g.gap * y[i]);
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A p = kSquares ? square_or_zero(z[i]) : z[i];
      sum[i] = g.task * p + g.student * z[i];
    }
  }
}

template <typename A, typename Out>
BALORA_INLINE void kept_gradient_of(const A* z, const A* y, int64_t n, const KeptGradient<A>& g,
                                    Out* out) {
  A sum[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(n - first, kBlock);
    const A* t = y ? y + first : nullptr;
    if (g.squares) {
      kept_block<true>(z + first, t, count, g, sum);
    } else {
      kept_block<false>(z + first, t, count, g, sum);
    }
    // An element is written no further on than it is read.
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[first + i] = store<Out>(sum[i]);
  }
}

template <typename A>
BALORA_INLINE KeptSums keep_of(A* z, A* y, int64_t n, const PairShifts<A>& shifts) {
  return y ? keep_pair_of<A>(z, y, n, shifts) : keep_one_of<A>(z, n, shifts);
}

template <typename A>
BALORA_INLINE void cap_of(A* x, int64_t n, A cap) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = soft_capped<VectorMath>(x[i], cap);
}

template <typename A>
BALORA_INLINE void scaled_exp_of(const A* y, int64_t n, A shift, A scale, A factor, A* q) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) q[i] = factor * vexp_or_zero((y[i] - shift) * scale);
}

}  // namespace

template <typename A>
A row_max(const A* x, int64_t n) {
  return at_level<&max_of<A>>(x, n);
}
template <typename A>
A block_maxima(const A* x, int64_t n, A* maxima) {
  return at_level<&maxima_of<A>>(x, n, maxima);
}
template <typename A>
int64_t find_at_least(const A* x, int64_t n, A least, int32_t* found) {
  return at_level<&at_least_of<A>>(x, n, least, found);
}
template <typename A>
double exp_sum(const A* x, int64_t n, A shift, A scale) {
  return at_level<&exp_sum_of<A>>(x, n, shift, scale);
}
template <typename A>
A teacher_shift(const A* z, const A* y, int64_t n, const PairShifts<A>& largest) {
  return at_level<&teacher_shift_of<A>>(z, y, n, largest);
}
template <typename A>
DivergenceSums divergence_sums(const A* z, const A* y, int64_t n, const PairShifts<A>& shifts) {
  return at_level<&divergence_sums_of<A>>(z, y, n, shifts);
}
template <typename A>
WeightedSum entropy_sums(const A* x, int64_t n, A shift, A scale) {
  return at_level<&entropy_sums_of<A>>(x, n, shift, scale);
}
template <typename A>
void dense_gradient(A* z, const A* y, int64_t n, const DenseGradient<A>& g) {
  at_level<&gradient_of<A>>(z, y, n, g);
}
template <typename A>
KeptSums keep_exponentials(A* z, A* y, int64_t n, const PairShifts<A>& shifts) {
  return at_level<&keep_of<A>>(z, y, n, shifts);
}
template <typename A>
void kept_gradient(A* z, const A* y, int64_t n, const KeptGradient<A>& g) {
  at_level<&kept_gradient_of<A, A>>(z, y, n, g, z);
}
template <typename A>
void scaled_exp(const A* y, int64_t n, A shift, A scale, A factor, A* q) {
  at_level<&scaled_exp_of<A>>(y, n, shift, scale, factor, q);
}
template <typename A>
void cap_row(A* x, int64_t n, A cap) {
  at_level<&cap_of<A>>(x, n, cap);
}
void kept_gradient_rounded(float* z, const float* y, int64_t n, const KeptGradient<float>& g) {
  at_level<&kept_gradient_of<float, bf16>>(z, y, n, g, reinterpret_cast<bf16*>(z));
}

#define PASSES(A)                                                                             \
  template A row_max(const A*, int64_t);                                                      \
  template A block_maxima(const A*, int64_t, A*);                                             \
  template int64_t find_at_least(const A*, int64_t, A, int32_t*);                             \
  template double exp_sum(const A*, int64_t, A, A);                                           \
  template A teacher_shift(const A*, const A*, int64_t, const PairShifts<A>&);                \
  template DivergenceSums divergence_sums(const A*, const A*, int64_t, const PairShifts<A>&); \
  template WeightedSum entropy_sums(const A*, int64_t, A, A);                                 \
  template void dense_gradient(A*, const A*, int64_t, const DenseGradient<A>&);               \
  template KeptSums keep_exponentials(A*, A*, int64_t, const PairShifts<A>&);                 \
  template void kept_gradient(A*, const A*, int64_t, const KeptGradient<A>&);                 \
  template void scaled_exp(const A*, int64_t, A, A, A, A*);                                   \
  template void cap_row(A*, int64_t, A);
PASSES(float)
PASSES(double)
#undef PASSES

}  // namespace balora::head
