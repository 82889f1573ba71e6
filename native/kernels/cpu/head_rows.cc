// Formulas (p, q softmax of z/T and y/T, pi softmax of z/Te over the K largest, H its entropy):
//   task lse(z) - z_c;  consistency T^2 (lse(z/T) - lse(y/T) + sum q (y-z)/T), exactly 0 where y ==
//   z;  entropy H dz = ts (softmax(z) - e_c) + cs T (p - q) + ds pi (log pi + H) / Te, times 1 -
//   (z/cap)^2 under soft-capping
#include "kernels/cpu/head_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec_math.h"

namespace balora {
namespace {

constexpr int64_t kBlock = 256;
constexpr int64_t kInsertionLimit = 64;  // above, a selection over an index array is quicker

// e^x, and 0 below e^-60 in f32: what the sums cannot see anyway would become subnormal numbers in
// dz, and products with those run a hundred times slower on most CPUs.
BALORA_INLINE float exp_or_zero(float x) {
  constexpr float kLowest = -60.0f;
  const float value = vexp(x < kLowest ? kLowest : x);
  return x < kLowest ? 0.0f : value;
}
BALORA_INLINE double exp_or_zero(double x) {
  return vexp(x);
}

template <typename A>
BALORA_INLINE A max_of(const A* x, int64_t n) {
  A best = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : best)
  for (int64_t i = 0; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// sum e^((x - shift) * scale)
template <typename A>
BALORA_INLINE double exp_sum_of(const A* x, int64_t n, A shift, A scale) {
  double total = 0;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < last; ++i) sum += exp_or_zero((x[i] - shift) * scale);
    total += static_cast<double>(sum);
  }
  return total;
}

struct WeightedSum {
  double weight, value;
};

// Of w = e^((y - shift) * scale): sum w and sum w (y - z).
template <typename A>
BALORA_INLINE WeightedSum teacher_sums_of(const A* y, const A* z, int64_t n, A shift, A scale) {
  WeightedSum total{0, 0};
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A weight = 0, value = 0;
#pragma omp simd reduction(+ : weight, value)
    for (int64_t i = first; i < last; ++i) {
      const A w = exp_or_zero((y[i] - shift) * scale);
      weight += w;
      value += w * (y[i] - z[i]);
    }
    total.weight += static_cast<double>(weight);
    total.value += static_cast<double>(value);
  }
  return total;
}

// Of w = e^((x - shift) * scale): sum w and sum w (x - shift).
template <typename A>
BALORA_INLINE WeightedSum entropy_sums_of(const A* x, int64_t n, A shift, A scale) {
  WeightedSum total{0, 0};
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    A weight = 0, value = 0;
#pragma omp simd reduction(+ : weight, value)
    for (int64_t i = first; i < last; ++i) {
      const A offset = x[i] - shift, w = exp_or_zero(offset * scale);
      weight += w;
      value += w * offset;
    }
    total.weight += static_cast<double>(weight);
    total.value += static_cast<double>(value);
  }
  return total;
}

// The dense part of dz: each coefficient holds the reciprocal of its sum; zero leaves its
// exponentials out.
template <typename A>
struct DenseGradient {
  A shift, task;
  A scale, student, gap,
      teacher_shift;  // gap = student - teacher: p = q gives exactly 0 even with fused adds
  A diversity, entropy_scale, log_sum, entropy;
  A inverse_cap;  // 0: no soft-capping
};

template <typename A>
BALORA_INLINE void gradient_of(A* z, const A* y, int64_t n, const DenseGradient<A>& g) {
  A sum[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(n - first, kBlock);
    A* x = z + first;
    for (int64_t i = 0; i < count; ++i) sum[i] = 0;
    if (g.task != A(0)) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) sum[i] = g.task * exp_or_zero(x[i] - g.shift);
    }
    if (g.student != A(0) && !y) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        sum[i] += g.student * exp_or_zero((x[i] - g.shift) * g.scale);
      }
    } else if (g.student != A(0)) {
      const A* t = y + first;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A p = exp_or_zero((x[i] - g.shift) * g.scale),
                q = exp_or_zero((t[i] - g.teacher_shift) * g.scale);
        sum[i] += g.student * (p - q) + g.gap * q;
      }
    }
    if (g.diversity != A(0)) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A log_pi = (x[i] - g.shift) * g.entropy_scale - g.log_sum;
        sum[i] += g.diversity * exp_or_zero(log_pi) * (log_pi + g.entropy);
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
BALORA_INLINE void cap_of(A* x, int64_t n, A cap) {
  const A inverse = A(1) / cap;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = cap * vtanh(x[i] * inverse);
}

// q = factor e^((y - shift) * scale)
template <typename A>
BALORA_INLINE void scaled_exp_of(const A* y, int64_t n, A shift, A scale, A factor, A* q) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) q[i] = factor * exp_or_zero((y[i] - shift) * scale);
}

#define ROWS(A)                                                                               \
  BALORA_SIMD A row_max(const A* x, int64_t n) {                                              \
    return max_of<A>(x, n);                                                                   \
  }                                                                                           \
  BALORA_SIMD double exp_sum(const A* x, int64_t n, A shift, A scale) {                       \
    return exp_sum_of<A>(x, n, shift, scale);                                                 \
  }                                                                                           \
  BALORA_SIMD WeightedSum teacher_sums(const A* y, const A* z, int64_t n, A shift, A scale) { \
    return teacher_sums_of<A>(y, z, n, shift, scale);                                         \
  }                                                                                           \
  BALORA_SIMD WeightedSum entropy_sums(const A* x, int64_t n, A shift, A scale) {             \
    return entropy_sums_of<A>(x, n, shift, scale);                                            \
  }                                                                                           \
  BALORA_SIMD void dense_gradient(A* z, const A* y, int64_t n, const DenseGradient<A>& g) {   \
    gradient_of<A>(z, y, n, g);                                                               \
  }                                                                                           \
  BALORA_SIMD void scaled_exp(const A* y, int64_t n, A shift, A scale, A factor, A* q) {      \
    scaled_exp_of<A>(y, n, shift, scale, factor, q);                                          \
  }                                                                                           \
  BALORA_SIMD void cap_row(A* x, int64_t n, A cap) {                                          \
    cap_of<A>(x, n, cap);                                                                     \
  }
ROWS(float)
ROWS(double)
#undef ROWS

}  // namespace

template <typename A>
HeadRows<A>::HeadRows(const HeadOptions& options, int64_t vocabulary)
    : options_(options),
      vocabulary_(vocabulary),
      top_k_(std::max<int64_t>(options.entropy_top_k, 0)) {}

template <typename A>
void HeadRows<A>::cap(A* logits) const {
  if (options_.softcap > 0) cap_row(logits, vocabulary_, static_cast<A>(options_.softcap));
}

// Keeps the K best in order. A logit enters only if it is strictly larger than the last, so equal
// ones keep the lower index; a block whose maximum cannot enter is skipped by its maximum alone.
template <typename A>
void HeadRows<A>::find_top_k(const A* z) {
  const size_t k = static_cast<size_t>(top_k_);
  if (top_k_ > kInsertionLimit) {
    top_.resize(static_cast<size_t>(vocabulary_));
    std::iota(top_.begin(), top_.end(), int64_t{0});
    const auto before = [z](int64_t a, int64_t b) {
      return z[a] > z[b] || (z[a] == z[b] && a < b);
    };
    std::nth_element(top_.begin(), top_.begin() + top_k_ - 1, top_.end(), before);
    top_.resize(k);
    std::sort(top_.begin(), top_.end(), before);
  } else {
    top_.assign(1, 0);
    for (int64_t first = 0; first < vocabulary_; first += kBlock) {
      const int64_t last = std::min(vocabulary_, first + kBlock);
      if (top_.size() == k && !(row_max(z + first, last - first) > z[top_.back()])) continue;
      for (int64_t i = std::max<int64_t>(first, 1); i < last; ++i) {
        if (top_.size() == k) {
          if (!(z[i] > z[top_.back()])) continue;
          top_.pop_back();
        }
        auto place = top_.end();
        while (place != top_.begin() && z[i] > z[*(place - 1)]) --place;
        top_.insert(place, i);
      }
    }
  }
  top_values_.resize(k);
  for (size_t i = 0; i < k; ++i) top_values_[i] = z[top_[i]];
}

template <typename A>
void HeadRows<A>::take_entropy(const A* z, HeadRow& row) {
  const A scale = static_cast<A>(1 / options_.entropy_temperature);
  const A* values = z;
  int64_t count = vocabulary_;
  if (!dense_entropy()) {
    find_top_k(z);
    values = top_values_.data();
    count = top_k_;
  }
  const A max = row_max(values, count);
  const WeightedSum sums = entropy_sums(values, count, max, scale);
  const double log_sum = std::log(sums.weight);
  row.entropy = log_sum - sums.value / sums.weight * static_cast<double>(scale);
  row.shift_entropy = static_cast<double>(max);
  row.log_sum_entropy = log_sum;
}

template <typename A>
HeadRow HeadRows<A>::statistics(const A* z, const A* y, int64_t target, bool regularized,
                                const TeacherRow* teacher) {
  HeadRow row;
  const double temperature = options_.temperature;
  const A max = row_max(z, vocabulary_);
  row.shift = static_cast<double>(max);
  if (target >= 0) {
    row.sum = exp_sum(z, vocabulary_, max, A(1));
    row.task = row.shift + std::log(row.sum) - static_cast<double>(z[target]);
  }
  if (!regularized) return row;
  if (teacher) {
    row.summarized = true;
    row.sum_student = exp_sum(z, vocabulary_, max, static_cast<A>(1 / temperature));
    const double lse = row.shift / temperature + std::log(row.sum_student);
    row.consistency = temperature * (temperature * (lse - teacher->entropy) - teacher->mean_logit);
  }
  if (y) {
    const A scale = static_cast<A>(1 / temperature), teacher_max = row_max(y, vocabulary_);
    // One function for both sums: equal logits give equal bits, hence a term of exactly 0.
    row.sum_student = teacher_sums(z, z, vocabulary_, max, scale).weight;
    const WeightedSum teacher = teacher_sums(y, z, vocabulary_, teacher_max, scale);
    row.shift_teacher = static_cast<double>(teacher_max);
    row.sum_teacher = teacher.weight;
    const double lse_gap = (row.shift - row.shift_teacher) / temperature +
                           (std::log(row.sum_student) - std::log(row.sum_teacher));
    row.consistency =
        temperature * temperature * lse_gap + temperature * (teacher.value / teacher.weight);
  }
  if (options_.entropy_top_k >= 0) take_entropy(z, row);
  return row;
}

template <typename A>
void HeadRows<A>::probabilities(const A* y, const HeadRow& row, A* q) const {
  scaled_exp(y, vocabulary_, static_cast<A>(row.shift_entropy),
             static_cast<A>(1 / options_.entropy_temperature),
             static_cast<A>(std::exp(-row.log_sum_entropy)), q);
}

template <typename A>
void HeadRows<A>::gradient(A* z, const A* y, int64_t target, bool regularized, const HeadRow& row) {
  const bool has_entropy = regularized && options_.entropy_top_k >= 0;
  DenseGradient<A> g{};
  g.inverse_cap = options_.softcap > 0 ? static_cast<A>(1 / options_.softcap) : A(0);
  g.shift = static_cast<A>(row.shift);
  if (target >= 0) g.task = static_cast<A>(options_.task_scale / row.sum);
  g.scale = static_cast<A>(1 / options_.temperature);
  g.teacher_shift = static_cast<A>(row.shift_teacher);
  if (regularized && (y || row.summarized)) {
    const double scale = options_.consistency_scale * options_.temperature;
    g.student = static_cast<A>(scale / row.sum_student);
    g.gap = static_cast<A>(scale / row.sum_student - scale / row.sum_teacher);
  }
  const double diversity = options_.diversity_scale / options_.entropy_temperature;
  if (has_entropy && dense_entropy()) g.diversity = static_cast<A>(diversity);
  g.entropy_scale = static_cast<A>(1 / options_.entropy_temperature);
  g.log_sum = static_cast<A>(row.log_sum_entropy);
  g.entropy = static_cast<A>(row.entropy);

  const auto slope = [&](A value) {
    const A capped = value * g.inverse_cap;
    return A(1) - capped * capped;
  };
  const A target_slope = target >= 0 ? slope(z[target]) : A(0);
  dense_gradient(z, y, vocabulary_, g);
  if (target >= 0) z[target] -= static_cast<A>(options_.task_scale) * target_slope;
  if (!has_entropy || dense_entropy() || diversity == 0) return;
  for (size_t i = 0; i < top_.size(); ++i) {
    const double value = static_cast<double>(top_values_[i]);
    const double log_pi =
        (value - row.shift_entropy) / options_.entropy_temperature - row.log_sum_entropy;
    z[top_[i]] += static_cast<A>(diversity * std::exp(log_pi) * (log_pi + row.entropy)) *
                  slope(top_values_[i]);
  }
}

template class HeadRows<float>;
template class HeadRows<double>;

}  // namespace balora
