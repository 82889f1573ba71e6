// LayerNorm over the last dimension, weight and bias optional; the variance is taken about the mean
// in a second pass over the row, which stays in cache.
//   rstd = 1 / sqrt(mean((x - mean)^2) + eps)
//   y = (x - mean) * rstd * weight + bias
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = dy * weight
#include <vector>

#include "kernels/cpu/norm/partials.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/norm.h"

namespace balora {
namespace {

constexpr int64_t kRowGrain = 16;

// Operands of the forward. Rows are (N,C); weight and bias are (C) copies in the accumulator's type
// (1 and 0 where absent).
template <typename T>
struct Forward {
  const T* x;
  const Acc<T>* weight;
  const Acc<T>* bias;
  T* y;
  Acc<T>* mean;  // (N)
  Acc<T>* rstd;  // (N)
  int64_t channels;
  Acc<T> eps;
};

// Operands of the backward, likewise.
template <typename T>
struct Backward {
  const T* dy;
  const T* x;
  const Acc<T>* weight;
  const Acc<T>* mean;
  const Acc<T>* rstd;
  T* dx;  // may be null
  int64_t channels;
};

// Sums over rows, of one thread; both null: none.
template <typename A>
struct Sums {
  A* dweight;
  A* dbias;
};

template <typename T, typename A = Acc<T>>
BALORA_INLINE void forward_rows(const Forward<T>& o, int64_t begin, int64_t end) {
  const A *weight = o.weight, *bias = o.bias;
  const int64_t channels = o.channels;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = o.x + n * channels;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; ++c) sum += load(row[c]);
    const A mean = sum / static_cast<A>(channels);
    A squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; ++c) {
      const A centred = load(row[c]) - mean;
      squares += centred * centred;
    }
    const A rstd = reciprocal_deviation(squares / static_cast<A>(channels), o.eps);
    o.mean[n] = mean;
    o.rstd[n] = rstd;
    T* out = o.y + n * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = store<T>(normalised(load(row[c]), mean, rstd) * weight[c] + bias[c]);
    }
  }
}

template <typename T, typename A = Acc<T>>
BALORA_INLINE void backward_rows(const Backward<T>& o, const Sums<A>& sums, int64_t begin,
                                 int64_t end) {
  const A* weight = o.weight;
  A *dweight = sums.dweight, *dbias = sums.dbias;
  const int64_t channels = o.channels;
  for (int64_t n = begin; n < end; ++n) {
    const T* g = o.dy + n * channels;
    const T* row = o.x + n * channels;
    const A mean = o.mean[n], rstd = o.rstd[n];
    if (dweight) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        dweight[c] += load(g[c]) * normalised(load(row[c]), mean, rstd);
        dbias[c] += load(g[c]);
      }
    }
    if (!o.dx) continue;
    A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t c = 0; c < channels; ++c) {
      const A scaled = load(g[c]) * weight[c];
      sum += scaled;
      dot += scaled * normalised(load(row[c]), mean, rstd);
    }
    sum /= static_cast<A>(channels);
    dot /= static_cast<A>(channels);
    T* out = o.dx + n * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A normed = normalised(load(row[c]), mean, rstd);
      out[c] = store<T>(layer_norm_gradient(load(g[c]) * weight[c], normed, rstd, sum, dot));
    }
  }
}

// The (C) operand in accumulator type, or `missing` everywhere.
template <typename T>
std::vector<Acc<T>> widened(const View* v, int64_t channels, Acc<T> missing) {
  std::vector<Acc<T>> out(static_cast<size_t>(channels), missing);
  if (v) {
    for (int64_t c = 0; c < channels; ++c) out[static_cast<size_t>(c)] = load(data_of<T>(v)[c]);
  }
  return out;
}

}  // namespace

int32_t layer_norm_forward_kernel(Context* ctx, const balora_layer_norm_forward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const std::vector<A> w = widened<T>(o.weight, channels, A(1));
    const std::vector<A> b = widened<T>(o.bias, channels, A(0));
    const Forward<T> operands{.x = data_of<T>(o.x),
                              .weight = w.data(),
                              .bias = b.data(),
                              .y = data_of<T>(o.y),
                              .mean = data_of<A>(o.mean),
                              .rstd = data_of<A>(o.rstd),
                              .channels = channels,
                              .eps = static_cast<A>(o.eps)};
    parallel_for(ctx, rows, kRowGrain, [&](int64_t begin, int64_t end) {
      at_level<&forward_rows<T>>(operands, begin, end);
    });
  });
  return 0;
}

int32_t layer_norm_backward_kernel(Context* ctx, const balora_layer_norm_backward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const int width = parallel_width(ctx, rows, kRowGrain);
    const bool sums = o.dweight || o.dbias;
    const std::vector<A> w = widened<T>(o.weight, channels, A(1));
    std::vector<A> dw(sums ? static_cast<size_t>(width * channels) : 0, A(0)), db(dw);
    const Backward<T> operands{.dy = data_of<T>(o.dy),
                               .x = data_of<T>(o.x),
                               .weight = w.data(),
                               .mean = data_of<A>(o.mean),
                               .rstd = data_of<A>(o.rstd),
                               .dx = data_of<T>(o.dx),
                               .channels = channels};
    parallel_for(ctx, width, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        const Sums<A> of_part{sums ? dw.data() + part * channels : nullptr,
                              sums ? db.data() + part * channels : nullptr};
        at_level<&backward_rows<T>>(operands, of_part, rows * part / width,
                                    rows * (part + 1) / width);
      }
    });
    if (o.dweight) sum_partials(dw, channels, data_of<A>(o.dweight));
    if (o.dbias) sum_partials(db, channels, data_of<A>(o.dbias));
  });
  return 0;
}

}  // namespace balora
