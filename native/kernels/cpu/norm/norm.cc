// RMSNorm over the last dimension. Statistics are f32 (f64 for f64); forward and backward read each
// row once.
//   rstd = 1 / sqrt(mean(x^2) + eps)
//   y = x * rstd * (weight + weight_offset)
// rms_norm_add first forms x + residual, rounds it, and normalises what it stored, so it equals the
// two ops apart. Llama rounds x * rstd to the activation dtype before it multiplies
// (cast_before_weight); Gemma, whose weights are stored minus one (weight_offset 1), multiplies in
// f32 and rounds last. f32 and f64 make no difference.
#include "kernels/cpu/norm/norm.h"

#include <algorithm>

#include "kernels/cpu/norm/partials.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/shared/norm.h"

namespace balora {
namespace {

template <typename T>
BALORA_INLINE Acc<T> rounded(Acc<T> value, bool round) {
  return round ? load(store<T>(value)) : value;
}

// y of one row once its sum of squares is known; returns rstd.
template <typename T>
BALORA_INLINE Acc<T> normalise_row(const balora_rms_norm_add_forward& o, const T* row,
                                   Acc<T> squares, T* y) {
  using A = Acc<T>;
  const T* weight = data_of<T>(o.weight);
  const A offset = static_cast<A>(o.weight_offset);
  const int64_t channels = o.x->shape[1];
  const A scale = reciprocal_deviation(squares / static_cast<A>(channels), static_cast<A>(o.eps));
  if (o.cast_before_weight) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      y[c] = store<T>(load(store<T>(load(row[c]) * scale)) * (load(weight[c]) + offset));
    }
  } else {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      y[c] = store<T>(load(row[c]) * scale * (load(weight[c]) + offset));
    }
  }
  return scale;
}

// x, or the sum of x and a residual, is normalised.
template <typename T>
BALORA_INLINE void forward_rows(const balora_rms_norm_add_forward& o, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = o.x->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const int64_t at = n * channels;
    const T* row = data_of<T>(o.x) + at;
    A squares = 0;
    if (o.residual) {
      const T *x = row, *residual = data_of<T>(o.residual) + at;
      T* sum = data_of<T>(o.sum) + at;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < channels; ++c) {
        sum[c] = store<T>(load(x[c]) + load(residual[c]));
        squares += load(sum[c]) * load(sum[c]);
      }
      row = sum;
    } else {
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < channels; ++c) squares += load(row[c]) * load(row[c]);
    }
    data_of<A>(o.rstd)[n] = normalise_row<T>(o, row, squares, data_of<T>(o.y) + at);
  }
}

// Gradients, with g = dy * (weight + offset) and xhat = x * rstd:
//   dx = rstd * (g - xhat * mean(g * xhat)) + dsum
//   dweight += sum over the rows of dy * xhat, unless dweight is null
template <typename T>
BALORA_INLINE void backward_rows(const balora_rms_norm_backward& o, Acc<T>* dweight, int64_t begin,
                                 int64_t end) {
  using A = Acc<T>;
  const T* weight = data_of<T>(o.weight);
  const A offset = static_cast<A>(o.weight_offset);
  const bool round = o.cast_before_weight != 0;
  const int64_t channels = o.x->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const T *g = data_of<T>(o.dy) + n * channels, *row = data_of<T>(o.x) + n * channels;
    const A scale = data_of<A>(o.rstd)[n];
    if (dweight) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        dweight[c] += load(g[c]) * rounded<T>(load(row[c]) * scale, round);
      }
    }
    if (!o.dx) continue;
    A dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < channels; ++c) {
      dot += load(g[c]) * (load(weight[c]) + offset) * load(row[c]);
    }
    const A mean = dot * scale * scale / static_cast<A>(channels);
    T* out = data_of<T>(o.dx) + n * channels;
    if (!o.dsum) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = store<T>(
            scale * rms_norm_gradient(load(g[c]), load(row[c]), load(weight[c]) + offset, mean));
      }
      continue;
    }
    const T* beside = data_of<T>(o.dsum) + n * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A through = rms_norm_gradient(load(g[c]), load(row[c]), load(weight[c]) + offset, mean);
      out[c] = store<T>(load(beside[c]) + scale * through);
    }
  }
}

void forward_any(Context* ctx, const balora_rms_norm_add_forward& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    share_out(ctx, o.x->shape[0], kNormGrain,
              [&](int64_t begin, int64_t end) { at_level<&forward_rows<T>>(o, begin, end); });
  });
}

void backward_any(Context* ctx, const balora_rms_norm_backward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const std::vector<A> dweight = sum_over_rows<A>(
        ctx, rows, o.dweight ? channels : 0, [&](A* sums, int64_t begin, int64_t end) {
          at_level<&backward_rows<T>>(o, sums, begin, end);
        });
    std::copy(dweight.begin(), dweight.end(), data_of<A>(o.dweight));
  });
}

bool is_bf16(const balora_rms_norm_add_forward& o) {
  return o.x->dtype == BALORA_BF16;
}
bool is_bf16_for_dx(const balora_rms_norm_backward& o) {
  return o.x->dtype == BALORA_BF16 && o.dx && !o.dweight;
}

constexpr Implementation<balora_rms_norm_add_forward> kForward[] = {
    BALORA_X86("avx512_bf16", platform::kBf16, is_bf16, x86::rms_norm_forward),
    {"any", 0, nullptr, forward_any},
};
constexpr Implementation<balora_rms_norm_backward> kBackward[] = {
    BALORA_X86("avx512_bf16", platform::kBf16, is_bf16_for_dx, x86::rms_norm_backward),
    {"any", 0, nullptr, backward_any},
};

}  // namespace

BALORA_IMPLEMENTATIONS(rms_norm_forward, kForward)
BALORA_IMPLEMENTATIONS(rms_norm_backward, kBackward)

int32_t rms_norm_forward_kernel(Context* ctx, const balora_rms_norm_forward& o) {
  return run_first(kForward, ctx,
                   {.x = o.x,
                    .weight = o.weight,
                    .y = o.y,
                    .rstd = o.rstd,
                    .eps = o.eps,
                    .weight_offset = o.weight_offset,
                    .cast_before_weight = o.cast_before_weight});
}
int32_t rms_norm_add_forward_kernel(Context* ctx, const balora_rms_norm_add_forward& o) {
  return run_first(kForward, ctx, o);
}
int32_t rms_norm_backward_kernel(Context* ctx, const balora_rms_norm_backward& o) {
  return run_first(kBackward, ctx, o);
}

}  // namespace balora
