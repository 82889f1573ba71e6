// RMSNorm over the last dimension: statistics in f32 (f64 for f64), one read of each row per
// direction.
//   y = x * rstd * (weight + weight_offset),  rstd = 1 / sqrt(mean(x^2) + eps)
// rms_norm_add first forms x + residual, rounds it, and normalises what it stored, so it equals the
// two ops apart. Llama rounds x * rstd to the activation dtype before it multiplies
// (cast_before_weight); Gemma, whose weights are stored minus one (weight_offset 1), multiplies in
// f32 and rounds last. f32 and f64 make no difference.
#include <cmath>
#include <vector>

#include "kernels/cpu/norm/norm_bf16.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int64_t kRowGrain = 16;

template <typename T>
BALORA_INLINE Acc<T> rounded(Acc<T> value, bool round) {
  return round ? load(store<T>(value)) : value;
}

// One row once its sum of squares is known; returns rstd.
template <typename T>
BALORA_INLINE Acc<T> normalise_row(const T* row, Acc<T> squares, const T* weight, T* out,
                                   int64_t channels, Acc<T> eps, Acc<T> offset, bool round) {
  using A = Acc<T>;
  const A scale = A(1) / std::sqrt(squares / static_cast<A>(channels) + eps);
  if (round) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = store<T>(load(store<T>(load(row[c]) * scale)) * (load(weight[c]) + offset));
    }
  } else {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = store<T>(load(row[c]) * scale * (load(weight[c]) + offset));
    }
  }
  return scale;
}

template <typename T>
BALORA_INLINE void forward_rows(const T* x, const T* weight, T* y, Acc<T>* rstd, int64_t begin,
                                int64_t end, int64_t channels, Acc<T> eps, Acc<T> offset,
                                bool round) {
  using A = Acc<T>;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = x + n * channels;
    A squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; ++c) {
      const A value = load(row[c]);
      squares += value * value;
    }
    rstd[n] =
        normalise_row<T>(row, squares, weight, y + n * channels, channels, eps, offset, round);
  }
}

// dx = rstd * (g - xhat * mean(g * xhat)) + dsum, g = dy * (weight + offset), xhat = x * rstd; dsum
// (may be null) is the gradient that reaches x beside the norm.
template <typename T>
BALORA_INLINE void backward_rows(const T* dy, const T* dsum, const T* x, const T* weight,
                                 const Acc<T>* rstd, T* dx, Acc<T>* dweight, int64_t begin,
                                 int64_t end, int64_t channels, Acc<T> offset, bool round) {
  using A = Acc<T>;
  for (int64_t n = begin; n < end; ++n) {
    const T* g = dy + n * channels;
    const T* row = x + n * channels;
    const A scale = rstd[n];
    if (dweight) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        dweight[c] += load(g[c]) * rounded<T>(load(row[c]) * scale, round);
      }
    }
    if (!dx) continue;
    A dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < channels; ++c) {
      dot += load(g[c]) * (load(weight[c]) + offset) * load(row[c]);
    }
    const A mean = dot * scale * scale / static_cast<A>(channels);
    T* out = dx + n * channels;
    if (dsum) {
      const T* beside = dsum + n * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const A through = load(g[c]) * (load(weight[c]) + offset) - load(row[c]) * mean;
        out[c] = store<T>(load(beside[c]) + scale * through);
      }
      continue;
    }
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = store<T>(scale * (load(g[c]) * (load(weight[c]) + offset) - load(row[c]) * mean));
    }
  }
}

template <typename T>
BALORA_INLINE void forward_add_rows(const T* x, const T* residual, const T* weight, T* sum, T* y,
                                    Acc<T>* rstd, int64_t begin, int64_t end, int64_t channels,
                                    Acc<T> eps, Acc<T> offset, bool round) {
  using A = Acc<T>;
  for (int64_t n = begin; n < end; ++n) {
    const T *a = x + n * channels, *b = residual + n * channels;
    T* row = sum + n * channels;
    A squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; ++c) {
      row[c] = store<T>(load(a[c]) + load(b[c]));
      squares += load(row[c]) * load(row[c]);
    }
    rstd[n] =
        normalise_row<T>(row, squares, weight, y + n * channels, channels, eps, offset, round);
  }
}

// target_clones cannot mark a template, so each dtype gets plain functions of its own.
#define ROWS(T)                                                                                  \
  BALORA_SIMD void forward(const T* x, const T* w, T* y, Acc<T>* r, int64_t b, int64_t e,        \
                           int64_t c, Acc<T> eps, Acc<T> off, bool round) {                      \
    forward_rows<T>(x, w, y, r, b, e, c, eps, off, round);                                       \
  }                                                                                              \
  BALORA_SIMD void forward_add(const T* x, const T* res, const T* w, T* sum, T* y, Acc<T>* r,    \
                               int64_t b, int64_t e, int64_t c, Acc<T> eps, Acc<T> off,          \
                               bool round) {                                                     \
    forward_add_rows<T>(x, res, w, sum, y, r, b, e, c, eps, off, round);                         \
  }                                                                                              \
  BALORA_SIMD void backward(const T* dy, const T* dsum, const T* x, const T* w, const Acc<T>* r, \
                            T* dx, Acc<T>* dw, int64_t b, int64_t e, int64_t c, Acc<T> off,      \
                            bool round) {                                                        \
    backward_rows<T>(dy, dsum, x, w, r, dx, dw, b, e, c, off, round);                            \
  }
ROWS(float)
ROWS(bf16)
ROWS(f16)
ROWS(double)
#undef ROWS

// The constants of rows of bf16, which have functions of their own.
template <typename O>
RmsNormRow lanes_row(const O& o, double eps) {
  return {data_of<bf16>(o.weight), view_numel(*o.weight), static_cast<float>(eps),
          static_cast<float>(o.weight_offset), o.cast_before_weight != 0};
}

}  // namespace

int32_t rms_norm_forward_kernel(Context* ctx, const balora_rms_norm_forward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  if (o.x->dtype == BALORA_BF16 && tiles_ready()) {
    const RmsNormRow norm = lanes_row(o, o.eps);
    parallel_for(ctx, rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t at = n * channels;
        data_of<float>(o.rstd)[n] =
            rms_norm_row_bf16(norm, data_of<bf16>(o.x) + at, data_of<bf16>(o.y) + at);
      }
    });
    return 0;
  }
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    parallel_for(ctx, rows, kRowGrain, [&](int64_t begin, int64_t end) {
      forward(data_of<T>(o.x), data_of<T>(o.weight), data_of<T>(o.y), data_of<A>(o.rstd), begin,
              end, channels, static_cast<A>(o.eps), static_cast<A>(o.weight_offset),
              o.cast_before_weight != 0);
    });
  });
  return 0;
}

int32_t rms_norm_add_forward_kernel(Context* ctx, const balora_rms_norm_add_forward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  if (o.x->dtype == BALORA_BF16 && tiles_ready()) {
    const RmsNormRow norm = lanes_row(o, o.eps);
    parallel_for(ctx, rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t at = n * channels;
        data_of<float>(o.rstd)[n] =
            rms_norm_add_row_bf16(norm, data_of<bf16>(o.x) + at, data_of<bf16>(o.residual) + at,
                                  data_of<bf16>(o.sum) + at, data_of<bf16>(o.y) + at);
      }
    });
    return 0;
  }
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    parallel_for(ctx, rows, kRowGrain, [&](int64_t begin, int64_t end) {
      forward_add(data_of<T>(o.x), data_of<T>(o.residual), data_of<T>(o.weight), data_of<T>(o.sum),
                  data_of<T>(o.y), data_of<A>(o.rstd), begin, end, channels, static_cast<A>(o.eps),
                  static_cast<A>(o.weight_offset), o.cast_before_weight != 0);
    });
  });
  return 0;
}

int32_t rms_norm_backward_kernel(Context* ctx, const balora_rms_norm_backward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  if (o.x->dtype == BALORA_BF16 && !o.dweight && o.dx && tiles_ready()) {
    const RmsNormRow norm = lanes_row(o, 0);
    parallel_for(ctx, rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t at = n * channels;
        rms_norm_backward_row_bf16(
            norm, data_of<bf16>(o.dy) + at, o.dsum ? data_of<bf16>(o.dsum) + at : nullptr,
            data_of<bf16>(o.x) + at, data_of<float>(o.rstd)[n], data_of<bf16>(o.dx) + at);
      }
    });
    return 0;
  }
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const int width = parallel_width(ctx, rows, kRowGrain);
    std::vector<A> partial(o.dweight ? static_cast<size_t>(width * channels) : 0, A(0));
    parallel_for(ctx, width, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        backward(data_of<T>(o.dy), o.dsum ? data_of<T>(o.dsum) : nullptr, data_of<T>(o.x),
                 data_of<T>(o.weight), data_of<A>(o.rstd), o.dx ? data_of<T>(o.dx) : nullptr,
                 o.dweight ? partial.data() + part * channels : nullptr, rows * part / width,
                 rows * (part + 1) / width, channels, static_cast<A>(o.weight_offset),
                 o.cast_before_weight != 0);
      }
    });
    if (!o.dweight) return;
    A* out = data_of<A>(o.dweight);
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = 0;
      for (int part = 0; part < width; ++part) out[c] += partial[part * channels + c];
    }
  });
  return 0;
}

}  // namespace balora
