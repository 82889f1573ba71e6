// Reductions over the middle of a contiguous (A,R,C) -> (A,C). Sums run in f64 whatever the dtype,
// in chunks whose boundaries depend on the shape alone and which are combined in order, so the
// thread count does not change a bit.
//   logsumexp = m + ln sum e^(x - m), m the maximum (-infinity where all are);
//   variance  = sum (x - mean)^2 / (R - correction), in two passes.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/op_codes.h"

namespace balora {
namespace {

constexpr int64_t kChunk = 1 << 15;  // elements of a row that one task sums
constexpr int64_t kColumns = 256;    // columns that one task sums side by side
constexpr int64_t kGrain = 1 << 14;

// The terms of a sum: x, (x - shift)^2, or e^(x - shift).
enum class Term { kValue, kSquare, kExp };

template <Term term, typename A>
BALORA_INLINE double term_of(A x, A shift) {
  if constexpr (term == Term::kValue) return static_cast<double>(x);
  if constexpr (term == Term::kSquare) {
    const double d = static_cast<double>(x) - static_cast<double>(shift);
    return d * d;
  }
  if constexpr (term == Term::kExp) return static_cast<double>(vexp(x - shift));
}

template <Term term, typename T>
BALORA_INLINE double sum_row(const T* x, int64_t n, Acc<T> shift) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += term_of<term>(load(x[i]), shift);
  return sum;
}

template <Term term, typename T>
BALORA_INLINE void sum_columns(const T* x, int64_t rows, int64_t stride, int64_t columns,
                               const Acc<T>* shift, double* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x + r * stride;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) sums[c] += term_of<term>(load(row[c]), shift[c]);
  }
}

// The largest of n >= 1 values; NaN if one is.
template <typename T>
BALORA_INLINE Acc<T> highest(const T* x, int64_t n) {
  Acc<T> best = load(x[0]);
  int nan = 0;
#pragma omp simd reduction(max : best) reduction(| : nan)
  for (int64_t i = 0; i < n; ++i) {
    const Acc<T> value = load(x[i]);
    nan |= value != value;
    best = value > best ? value : best;
  }
  return nan ? std::numeric_limits<Acc<T>>::quiet_NaN() : best;
}

// The derivative of a logsumexp by x, e^(x - shift), or a variance, factor * (x - shift); times g.
template <Term term, typename T>
BALORA_INLINE T slope_of(T x, double shift, Acc<T> factor, Acc<T> g) {
  using A = Acc<T>;
  if constexpr (term == Term::kExp) return store<T>(g * vexp(load(x) - static_cast<A>(shift)));
  return store<T>(g * (factor * static_cast<A>(static_cast<double>(load(x)) - shift)));
}
template <Term term, typename T>
BALORA_INLINE void row_slopes(const T* x, int64_t n, double shift, Acc<T> factor, Acc<T> g, T* dx) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = slope_of<term>(x[i], shift, factor, g);
}
template <Term term, typename T>
BALORA_INLINE void column_slopes(const T* x, int64_t n, const double* shift, Acc<T> factor,
                                 const T* dy, T* dx) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) dx[c] = slope_of<term>(x[c], shift[c], factor, load(dy[c]));
}

struct Extent {
  int64_t outer, rows, inner;
};

int64_t chunks_of_row(const Extent& e) {
  return std::max<int64_t>(1, (e.rows + kChunk - 1) / kChunk);
}
// body(a, first element, elements, index of the chunk) for the chunks of all rows where C is 1.
template <typename Body>
void for_row_chunks(Context* ctx, const Extent& e, const Body& body) {
  const int64_t chunks = chunks_of_row(e);
  const int64_t grain = grain_of(kGrain, std::min(e.rows, kChunk));
  parallel_for(ctx, e.outer * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t a = i / chunks, from = i % chunks * kChunk;
      body(a, a * e.rows + from, std::min(kChunk, e.rows - from), i);
    }
  });
}

// sums[a*C + c] = sum over r of term(x[a,r,c], shift[a*C + c]); shift may be empty (then 0).
template <Term term, typename T>
std::vector<double> sum_middle(Context* ctx, const T* x, const Extent& e,
                               const std::vector<Acc<T>>& shift) {
  std::vector<double> sums(static_cast<size_t>(e.outer * e.inner), 0.0);
  if (e.inner == 1) {
    const int64_t chunks = chunks_of_row(e);
    std::vector<double> partial(chunks > 1 ? static_cast<size_t>(e.outer * chunks) : 0);
    double* out = chunks > 1 ? partial.data() : sums.data();
    for_row_chunks(ctx, e, [&](int64_t a, int64_t from, int64_t n, int64_t chunk) {
      out[chunk] = at_level<&sum_row<term, T>>(
          x + from, n, shift.empty() ? Acc<T>(0) : shift[static_cast<size_t>(a)]);
    });
    for (size_t i = 0; i < partial.size(); ++i) sums[i / static_cast<size_t>(chunks)] += partial[i];
    return sums;
  }
  const std::vector<Acc<T>> zeros(shift.empty() ? static_cast<size_t>(kColumns) : 0, Acc<T>(0));
  const int64_t tiles = (e.inner + kColumns - 1) / kColumns;
  const int64_t grain = grain_of(kGrain, e.rows * std::min(e.inner, kColumns));
  parallel_for(ctx, e.outer * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t a = i / tiles, from = i % tiles * kColumns;
      at_level<&sum_columns<term, T>>(
          x + a * e.rows * e.inner + from, e.rows, e.inner, std::min(kColumns, e.inner - from),
          shift.empty() ? zeros.data() : shift.data() + a * e.inner + from,
          sums.data() + a * e.inner + from);
    }
  });
  return sums;
}

// The extreme of each column and, where asked for, its first position. A NaN beats every number.
template <bool kMax, typename T>
void extremes(Context* ctx, const T* x, const Extent& e, Acc<T>* values,
              int32_t* positions = nullptr) {
  const int64_t grain = grain_of(kGrain, e.rows);
  parallel_for(ctx, e.outer * e.inner, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* column = x + i / e.inner * e.rows * e.inner + i % e.inner;
      if (kMax && e.inner == 1 && !positions) {
        values[i] = at_level<&highest<T>>(column, e.rows);
        continue;
      }
      Acc<T> best = load(column[0]);
      int32_t position = 0;
      for (int64_t r = 1; r < e.rows && best == best; ++r) {
        const Acc<T> value = load(column[r * e.inner]);
        if ((kMax ? value > best : value < best) || value != value) {
          best = value;
          position = static_cast<int32_t>(r);
        }
      }
      if (values) values[i] = best;
      if (positions) positions[i] = position;
    }
  });
}

Extent extent_of(const View* x) {
  return {x->shape[0], x->shape[1], x->shape[2]};
}

template <typename T>
std::vector<double> logsumexp(Context* ctx, const T* x, const Extent& e) {
  std::vector<Acc<T>> shift(static_cast<size_t>(e.outer * e.inner));
  extremes<true>(ctx, x, e, shift.data());
  std::vector<Acc<T>> finite = shift;  // x - x is NaN for an infinite maximum: shift by 0 there
  for (Acc<T>& m : finite) m = std::isinf(m) ? Acc<T>(0) : m;
  std::vector<double> sums = sum_middle<Term::kExp>(ctx, x, e, finite);
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = std::isinf(shift[i]) ? static_cast<double>(shift[i])
                                   : static_cast<double>(finite[i]) + std::log(sums[i]);
  }
  return sums;
}

template <typename T>
std::vector<double> variance(Context* ctx, const T* x, const Extent& e, double correction) {
  const std::vector<double> sums = sum_middle<Term::kValue>(ctx, x, e, {});
  std::vector<Acc<T>> mean(sums.size());
  std::vector<double> mean_error(sums.size());
  const auto rows = static_cast<double>(e.rows);
  for (size_t i = 0; i < sums.size(); ++i) {
    mean[i] = static_cast<Acc<T>>(sums[i] / rows);
    mean_error[i] = sums[i] / rows - static_cast<double>(mean[i]);
  }
  std::vector<double> out = sum_middle<Term::kSquare>(ctx, x, e, mean);
  // The shift was rounded to the accumulator type: take its known effect on the sum
  // of squares out again.
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = std::max(0.0, out[i] - rows * mean_error[i] * mean_error[i]) / (rows - correction);
    if (!(sums[i] - sums[i] == 0)) out[i] = std::numeric_limits<double>::quiet_NaN();
  }
  return out;
}

template <Term term, typename T>
void slopes(Context* ctx, const balora_reduce_backward& o) {
  const Extent e = extent_of(o.x);
  const T *x = data_of<T>(o.x), *dy = data_of<T>(o.dy);
  T* dx = data_of<T>(o.dx);
  const auto factor = static_cast<Acc<T>>(2.0 / (static_cast<double>(e.rows) - o.correction));
  // The mean, or the logsumexp, of each column.
  std::vector<double> shift;
  if (term == Term::kSquare) {
    shift = sum_middle<Term::kValue>(ctx, x, e, {});
    for (double& mean : shift) mean /= static_cast<double>(e.rows);
  } else {
    shift.assign(data_of<Acc<T>>(o.y), data_of<Acc<T>>(o.y) + e.outer * e.inner);
  }
  if (e.inner == 1) {
    for_row_chunks(ctx, e, [&](int64_t a, int64_t from, int64_t n, int64_t) {
      at_level<&row_slopes<term, T>>(x + from, n, shift[static_cast<size_t>(a)], factor,
                                     load(dy[a]), dx + from);
    });
    return;
  }
  const int64_t grain = grain_of(kGrain, e.inner);
  parallel_for(ctx, e.outer * e.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * e.inner, column = row / e.rows * e.inner;
      at_level<&column_slopes<term, T>>(x + at, e.inner, shift.data() + column, factor, dy + column,
                                        dx + at);
    }
  });
}

}  // namespace

int32_t reduce_kernel(Context* ctx, const balora_reduce& o) {
  const Extent e = extent_of(o.x);
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const T* data = data_of<T>(o.x);
    std::vector<double> result;
    if (o.op == BALORA_LOGSUMEXP) {
      result = logsumexp<T>(ctx, data, e);
    } else if (o.op == BALORA_VARIANCE) {
      result = variance<T>(ctx, data, e, o.correction);
    } else {
      result = sum_middle<Term::kValue>(ctx, data, e, {});
    }
    const double divisor = o.op == BALORA_MEAN ? static_cast<double>(e.rows) : 1.0;
    const auto write = [&]<typename D>() {
      D* out = data_of<D>(o.y);
      for (size_t i = 0; i < result.size(); ++i) {
        out[i] = store<D>(static_cast<Acc<D>>(result[i] / divisor));
      }
    };
    dispatch_float(o.y->dtype, write);
  });
  return 0;
}

int32_t reduce_backward_kernel(Context* ctx, const balora_reduce_backward& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    if (o.op == BALORA_VARIANCE) {
      slopes<Term::kSquare, T>(ctx, o);
    } else {
      slopes<Term::kExp, T>(ctx, o);
    }
  });
  return 0;
}

int32_t extreme_kernel(Context* ctx, const balora_extreme& o) {
  const Extent e = extent_of(o.x);
  dispatch_float(o.x->dtype, [&]<typename T>() {
    std::vector<Acc<T>> wide(o.values ? static_cast<size_t>(e.outer * e.inner) : 0);
    Acc<T>* to = o.values ? wide.data() : nullptr;
    int32_t* at = data_of<int32_t>(o.positions);
    if (o.is_max) {
      extremes<true>(ctx, data_of<T>(o.x), e, to, at);
    } else {
      extremes<false>(ctx, data_of<T>(o.x), e, to, at);
    }
    for (size_t i = 0; i < wide.size(); ++i) data_of<T>(o.values)[i] = store<T>(wide[i]);
  });
  return 0;
}

}  // namespace balora
