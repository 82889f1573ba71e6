// Adafactor in place; nothing of the parameter's size is made. kernels/shared/optimizer.h has the
// formulas. Every sum is made by one thread in a fixed order: the thread count changes no bit.
#include <cmath>
#include <vector>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/optimizer.h"

namespace balora {
namespace {

constexpr int64_t kGrain = 1 << 13;
constexpr int64_t kChunk = 1 << 15;  // elements summed by one task

// One row of C elements: u = g * scale * factor * inverse[c].
template <typename T>
struct Row {
  const T* grad;
  const T* inverse;  // 1/sqrt(column), or 1/sqrt(v) of a vector
  T scale, factor;
  int64_t n;
};

template <typename T>
BALORA_INLINE T direction(const Row<T>& r, int64_t i) {
  return adafactor_direction(r.grad[i], r.scale, r.factor, r.inverse[i]);
}

template <typename T>
struct Apply {
  T rate, decay, beta1;  // of the update, 1 - wd*lr', of the first moment
};

template <typename T>
BALORA_INLINE double squares(const T* x, int64_t n, T scale, double eps) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) {
    total += adafactor_square(x[i], scale, eps);
  }
  return total;
}

template <typename T>
BALORA_INLINE double update_squares(const Row<T>& r) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < r.n; ++i) {
    const double u = static_cast<double>(direction(r, i));
    total += u * u;
  }
  return total;
}

template <typename T>
BALORA_INLINE void apply(const Row<T>& r, T* param, T* m, const Apply<T>& k) {
#pragma omp simd
  for (int64_t i = 0; i < r.n; ++i) {
    T u = direction(r, i) * k.rate;
    if (m) m[i] = u = k.beta1 * m[i] + (1 - k.beta1) * u;
    param[i] = param[i] * k.decay - u;
  }
}

// sums[c] += (g * scale)^2 + eps over the rows, for `width` columns of a matrix with C columns.
template <typename T>
BALORA_INLINE void column_sums(const T* grad, int64_t rows, int64_t stride, int64_t width,
                               double* sums, T scale, double eps) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* g = grad + r * stride;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      sums[c] += adafactor_square(g[c], scale, eps);
    }
  }
}

template <typename T>
double sum_of_squares(Context* ctx, const T* x, int64_t n) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> partial(static_cast<size_t>(chunks));
  parallel_for(ctx, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      partial[static_cast<size_t>(i)] =
          at_level<&squares<T>>(x + i * kChunk, std::min(kChunk, n - i * kChunk), T{1}, 0.0);
    }
  });
  double total = 0;
  for (const double part : partial) total += part;
  return total;
}

template <typename T>
struct Moments {
  std::vector<T> factor;   // a row: sqrt(mean(row) / row)
  std::vector<T> inverse;  // a column: 1/sqrt(column)
};

template <typename T>
Moments<T> factored_moments(Context* ctx, const AdafactorExtents& e, const T* grad, T* row,
                            T* column, T scale, double beta2, double eps) {
  Moments<T> out{std::vector<T>(static_cast<size_t>(e.all_rows())),
                 std::vector<T>(static_cast<size_t>(e.matrices * e.columns))};
  parallel_for(ctx, e.all_rows(), grain_of(kGrain, e.columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const double sum = at_level<&squares<T>>(grad + r * e.columns, e.columns, scale, eps);
      row[r] = adafactor_blend(row[r], sum / static_cast<double>(e.columns), beta2);
    }
  });
  std::vector<double> sums(static_cast<size_t>(e.columns));
  for (int64_t i = 0; i < e.matrices; ++i) {
    std::fill(sums.begin(), sums.end(), 0.0);
    parallel_for(ctx, e.columns, grain_of(kGrain, e.rows), [&](int64_t begin, int64_t end) {
      at_level<&column_sums<T>>(grad + i * e.rows * e.columns + begin, e.rows, e.columns,
                                end - begin, sums.data() + begin, scale, eps);
    });
    double mean = 0;
    for (int64_t r = 0; r < e.rows; ++r) mean += row[i * e.rows + r];
    mean /= static_cast<double>(e.rows);
    for (int64_t r = i * e.rows; r < (i + 1) * e.rows; ++r) {
      out.factor[static_cast<size_t>(r)] = adafactor_factor(mean, row[r]);
    }
    for (int64_t c = 0; c < e.columns; ++c) {
      T& value = column[i * e.columns + c];
      value =
          adafactor_blend(value, sums[static_cast<size_t>(c)] / static_cast<double>(e.rows), beta2);
      out.inverse[static_cast<size_t>(i * e.columns + c)] = adafactor_inverse(value);
    }
  }
  return out;
}

template <typename T>
Moments<T> whole_moments(const AdafactorExtents& e, const T* grad, T* v, T scale, double beta2,
                         double eps) {
  Moments<T> out{{T{1}}, std::vector<T>(static_cast<size_t>(e.columns))};
  for (int64_t c = 0; c < e.columns; ++c) {
    v[c] = adafactor_blend(v[c], adafactor_square(grad[c], scale, eps), beta2);
    out.inverse[static_cast<size_t>(c)] = adafactor_inverse(v[c]);
  }
  return out;
}

}  // namespace

int32_t adafactor_step_kernel(Context* ctx, const balora_adafactor_step& o) {
  const AdafactorExtents e = adafactor_extents(o);
  const int64_t n = view_numel(*o.param);
  if (n == 0) return 0;
  const auto step = [&]<typename T>() {
    const T* g = data_of<T>(o.grad);
    T* p = data_of<T>(o.param);
    const T scale = static_cast<T>(o.coefficient ? *data_of<double>(o.coefficient) : 1.0);
    double rate = o.lr;
    if (o.scale_floor >= 0) {
      const double rms = std::sqrt(sum_of_squares(ctx, p, n) / static_cast<double>(n));
      rate *= std::max(o.scale_floor, rms);
    }
    const Moments<T> moments = o.column
                                   ? factored_moments(ctx, e, g, data_of<T>(o.row),
                                                      data_of<T>(o.column), scale, o.beta2, o.eps)
                                   : whole_moments(e, g, data_of<T>(o.row), scale, o.beta2, o.eps);
    const auto row_at = [&](int64_t r) {
      return Row<T>{g + r * e.columns, moments.inverse.data() + r / e.rows * e.columns, scale,
                    moments.factor[static_cast<size_t>(r)], e.columns};
    };
    std::vector<double> partial(static_cast<size_t>(e.all_rows()));
    const int64_t grain = grain_of(kGrain, e.columns);
    parallel_for(ctx, e.all_rows(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        partial[static_cast<size_t>(r)] = at_level<&update_squares<T>>(row_at(r));
      }
    });
    double squared = 0;
    for (const double part : partial) squared += part;
    const double rms = std::sqrt(squared / static_cast<double>(n));
    const Apply<T> k{static_cast<T>(rate / std::max(1.0, rms / o.clip)),
                     static_cast<T>(1 - o.weight_decay * rate), static_cast<T>(o.beta1)};
    parallel_for(ctx, e.all_rows(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * e.columns;
        at_level<&apply<T>>(row_at(r), p + at, o.m ? data_of<T>(o.m) + at : nullptr, k);
      }
    });
  };
  dispatch_optimizer_state(o.param->dtype, step);
  return 0;
}

}  // namespace balora
