// RMSNorm over the last dimension. Statistics are f32 (f64 for f64); forward and backward read each
// row once.
//   rstd = 1 / sqrt(mean(x^2) + eps)
//   y = x * rstd * (weight + weight_offset)
// rms_norm_add first forms x + residual, rounds it, and normalises what it stored, so it equals the
// two ops apart. Llama rounds x * rstd to the activation dtype before it multiplies
// (cast_before_weight); Gemma, whose weights are stored minus one (weight_offset 1), multiplies in
// f32 and rounds last. f32 and f64 make no difference.
#include <vector>

#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/norm/partials.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/norm.h"

namespace balora {
namespace {

template <typename T>
BALORA_INLINE Acc<T> rounded(Acc<T> value, bool round) {
  return round ? load(store<T>(value)) : value;
}

// Operands of the forward over rows of `channels` elements.
template <typename T>
struct Forward {
  const T* x;
  const T* residual = nullptr;  // added to x first; null: nothing is added
  T* sum = nullptr;             // x + residual, where there is a residual
  const T* weight;
  T* y;
  Acc<T>* rstd;
  int64_t channels;
  Acc<T> eps, offset;
  bool round;  // x * rstd to the dtype before the weight
};

// Operands of the backward, likewise.
template <typename T>
struct Backward {
  const T* dy;
  const T* dsum;  // the gradient that reaches x beside the norm; may be null
  const T* x;
  const T* weight;
  const Acc<T>* rstd;
  T* dx;  // may be null
  int64_t channels;
  Acc<T> offset;
  bool round;
};

// y of row n, which is at `row`, once its sum of squares is known; returns rstd.
template <typename T>
BALORA_INLINE Acc<T> normalise_row(const Forward<T>& o, int64_t n, const T* row, Acc<T> squares) {
  using A = Acc<T>;
  const T* weight = o.weight;
  T* out = o.y + n * o.channels;
  const A offset = o.offset;
  const int64_t channels = o.channels;
  const A scale = reciprocal_deviation(squares / static_cast<A>(channels), o.eps);
  if (o.round) {
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
BALORA_INLINE void forward_rows(const Forward<T>& o, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = o.channels;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = o.x + n * channels;
    A squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; ++c) {
      const A value = load(row[c]);
      squares += value * value;
    }
    o.rstd[n] = normalise_row<T>(o, n, row, squares);
  }
}

template <typename T>
BALORA_INLINE void forward_add_rows(const Forward<T>& o, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t channels = o.channels;
  for (int64_t n = begin; n < end; ++n) {
    const T *a = o.x + n * channels, *b = o.residual + n * channels;
    T* row = o.sum + n * channels;
    A squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; ++c) {
      row[c] = store<T>(load(a[c]) + load(b[c]));
      squares += load(row[c]) * load(row[c]);
    }
    o.rstd[n] = normalise_row<T>(o, n, row, squares);
  }
}

// Gradients, with g = dy * (weight + offset) and xhat = x * rstd:
//   dx = rstd * (g - xhat * mean(g * xhat)) + dsum
//   dweight += sum over the rows of dy * xhat, unless dweight is null
template <typename T>
BALORA_INLINE void backward_rows(const Backward<T>& o, Acc<T>* dweight, int64_t begin,
                                 int64_t end) {
  using A = Acc<T>;
  const T* weight = o.weight;
  const A offset = o.offset;
  const bool round = o.round;
  const int64_t channels = o.channels;
  for (int64_t n = begin; n < end; ++n) {
    const T* g = o.dy + n * channels;
    const T* row = o.x + n * channels;
    const A scale = o.rstd[n];
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
    T* out = o.dx + n * channels;
    if (o.dsum) {
      const T* beside = o.dsum + n * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const A through =
            rms_norm_gradient(load(g[c]), load(row[c]), load(weight[c]) + offset, mean);
        out[c] = store<T>(load(beside[c]) + scale * through);
      }
      continue;
    }
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = store<T>(
          scale * rms_norm_gradient(load(g[c]), load(row[c]), load(weight[c]) + offset, mean));
    }
  }
}

// The operands that forwards with and without a residual have in common.
template <typename T, typename O>
Forward<T> forward_operands(const O& o) {
  return {.x = data_of<T>(o.x),
          .weight = data_of<T>(o.weight),
          .y = data_of<T>(o.y),
          .rstd = data_of<Acc<T>>(o.rstd),
          .channels = o.x->shape[1],
          .eps = static_cast<Acc<T>>(o.eps),
          .offset = static_cast<Acc<T>>(o.weight_offset),
          .round = o.cast_before_weight != 0};
}

void forward_any(Context* ctx, const balora_rms_norm_forward& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const Forward<T> operands = forward_operands<T>(o);
    share_out(ctx, o.x->shape[0], kNormGrain, [&](int64_t begin, int64_t end) {
      at_level<&forward_rows<T>>(operands, begin, end);
    });
  });
}

void add_forward_any(Context* ctx, const balora_rms_norm_add_forward& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    Forward<T> operands = forward_operands<T>(o);
    operands.residual = data_of<T>(o.residual);
    operands.sum = data_of<T>(o.sum);
    share_out(ctx, o.x->shape[0], kNormGrain, [&](int64_t begin, int64_t end) {
      at_level<&forward_add_rows<T>>(operands, begin, end);
    });
  });
}

void backward_any(Context* ctx, const balora_rms_norm_backward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const int width = parallel_width(ctx, rows, kNormGrain);
    const Backward<T> operands{.dy = data_of<T>(o.dy),
                               .dsum = data_of<T>(o.dsum),
                               .x = data_of<T>(o.x),
                               .weight = data_of<T>(o.weight),
                               .rstd = data_of<A>(o.rstd),
                               .dx = data_of<T>(o.dx),
                               .channels = channels,
                               .offset = static_cast<A>(o.weight_offset),
                               .round = o.cast_before_weight != 0};
    std::vector<A> partial(o.dweight ? static_cast<size_t>(width * channels) : 0, A(0));
    parallel_for(ctx, width, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        at_level<&backward_rows<T>>(operands,
                                    o.dweight ? partial.data() + part * channels : nullptr,
                                    rows * part / width, rows * (part + 1) / width);
      }
    });
    if (o.dweight) sum_partials(partial, channels, data_of<A>(o.dweight));
  });
}

template <typename O>
bool is_bf16(const O& o) {
  return o.x->dtype == BALORA_BF16;
}
bool is_bf16_for_dx(const balora_rms_norm_backward& o) {
  return is_bf16(o) && o.dx && !o.dweight;
}

constexpr Implementation<balora_rms_norm_forward> kForward[] = {
    BALORA_X86("avx512_bf16", platform::kBf16, is_bf16, x86::rms_norm_forward),
    {"any", 0, nullptr, forward_any},
};
constexpr Implementation<balora_rms_norm_add_forward> kAddForward[] = {
    BALORA_X86("avx512_bf16", platform::kBf16, is_bf16, x86::rms_norm_add_forward),
    {"any", 0, nullptr, add_forward_any},
};
constexpr Implementation<balora_rms_norm_backward> kBackward[] = {
    BALORA_X86("avx512_bf16", platform::kBf16, is_bf16_for_dx, x86::rms_norm_backward),
    {"any", 0, nullptr, backward_any},
};

}  // namespace

BALORA_IMPLEMENTATIONS(rms_norm_forward, kForward)
BALORA_IMPLEMENTATIONS(rms_norm_add_forward, kAddForward)
BALORA_IMPLEMENTATIONS(rms_norm_backward, kBackward)

int32_t rms_norm_forward_kernel(Context* ctx, const balora_rms_norm_forward& o) {
  return run_first(kForward, ctx, o);
}
int32_t rms_norm_add_forward_kernel(Context* ctx, const balora_rms_norm_add_forward& o) {
  return run_first(kAddForward, ctx, o);
}
int32_t rms_norm_backward_kernel(Context* ctx, const balora_rms_norm_backward& o) {
  return run_first(kBackward, ctx, o);
}

}  // namespace balora
