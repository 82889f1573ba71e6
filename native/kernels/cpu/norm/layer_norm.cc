// LayerNorm over the last dimension, weight and bias optional; the variance is taken about the mean
// in a second pass over the row, which stays in cache.
//   rstd = 1 / sqrt(mean((x - mean)^2) + eps)
//   y = (x - mean) * rstd * weight + bias
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = dy * weight
#include <algorithm>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/norm/partials.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/shared/norm.h"

namespace balora {
namespace {

template <typename T, typename A = Acc<T>>
BALORA_INLINE void forward_rows(const balora_layer_norm_forward& o, const A* weight, const A* bias,
                                int64_t begin, int64_t end) {
  const int64_t channels = o.x->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const T* row = data_of<T>(o.x) + n * channels;
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
    const A rstd = reciprocal_deviation(squares / static_cast<A>(channels), static_cast<A>(o.eps));
    data_of<A>(o.mean)[n] = mean;
    data_of<A>(o.rstd)[n] = rstd;
    T* out = data_of<T>(o.y) + n * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = store<T>(normalised(load(row[c]), mean, rstd) * weight[c] + bias[c]);
    }
  }
}

template <typename T, typename A = Acc<T>>
BALORA_INLINE void backward_rows(const balora_layer_norm_backward& o, const A* weight, A* dweight,
                                 int64_t begin, int64_t end) {
  const int64_t channels = o.x->shape[1];
  A* dbias = dweight ? dweight + channels : nullptr;
  for (int64_t n = begin; n < end; ++n) {
    const T *g = data_of<T>(o.dy) + n * channels, *row = data_of<T>(o.x) + n * channels;
    const A mean = data_of<A>(o.mean)[n], rstd = data_of<A>(o.rstd)[n];
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
    T* out = data_of<T>(o.dx) + n * channels;
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
  if (v) convert_row(data_of<T>(v), out.data(), channels);
  return out;
}

}  // namespace

int32_t layer_norm_forward_kernel(Context* ctx, const balora_layer_norm_forward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const auto weight = widened<T>(o.weight, channels, 1), bias = widened<T>(o.bias, channels, 0);
    parallel_for(ctx, rows, kNormGrain, [&](int64_t begin, int64_t end) {
      at_level<&forward_rows<T>>(o, weight.data(), bias.data(), begin, end);
    });
  });
  return 0;
}

int32_t layer_norm_backward_kernel(Context* ctx, const balora_layer_norm_backward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const std::vector<A> weight = widened<T>(o.weight, channels, 1);
    // Those of dweight, and behind them those of dbias.
    const std::vector<A> sums =
        sum_over_rows<A>(ctx, rows, o.dweight || o.dbias ? 2 * channels : 0,
                         [&](A* of_rows, int64_t begin, int64_t end) {
                           at_level<&backward_rows<T>>(o, weight.data(), of_rows, begin, end);
                         });
    if (o.dweight) std::copy_n(sums.data(), channels, data_of<A>(o.dweight));
    if (o.dbias) std::copy_n(sums.data() + channels, channels, data_of<A>(o.dbias));
  });
  return 0;
}

}  // namespace balora
