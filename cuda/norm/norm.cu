// RMSNorm over the last dimension (kernels/cpu/norm/norm.cc has the formulas and the rounding
// rules). Bound by memory, each row read once into registers: the forward moves 2 * size bytes an
// element (4 * size with the residual, whose sum is formed, stored and normalised in one pass), the
// backward 3 * size (4 with dsum); about 10 flops an element. N=2048, C=4096 in bf16: 34 MB and 50
// MB, so 10 and 15 us at 3.35 TB/s. A group of threads a row (rows.cuh). The weight's gradient
// stays in registers over the rows of a group, which leaves one partial row that sum_columns adds
// in order: no atomics, equal bits in every run. Sums in f32 (f64 for f64) are of at most 32
// elements a thread up to C = 8192 in bf16, then a tree.
#include "device/rows.cuh"
#include "kernels/shared/norm.h"

namespace balora::cuda {
namespace {

constexpr int kHeldForward = 4, kHeldBackward = 2;

template <typename A>
struct NormOptions {
  A eps, offset;
  int32_t round;  // x * rstd to the activation's type before the weight
};

template <typename T>
__device__ inline Acc<T> rounded(Acc<T> value, int32_t round) {
  return round ? load(store<T>(value)) : value;
}

template <typename T>
__device__ inline Acc<T> sum_of_squares(const Packet<T>& packet) {
  Acc<T> sum = 0;
  BALORA_UNROLL
  for (int j = 0; j < kPackOf<T>; ++j) sum += packet[j] * packet[j];
  return sum;
}

template <typename T>
__device__ inline Packet<T> normalised(const Packet<T>& x, const Packet<T>& weight, Acc<T> scale,
                                       const NormOptions<Acc<T>>& options) {
  Packet<T> out;
  BALORA_UNROLL
  for (int j = 0; j < kPackOf<T>; ++j) {
    const Acc<T> unit = rounded<T>(x[j] * scale, options.round);
    out.put(j, store<T>(unit * (weight[j] + options.offset)));
  }
  return out;
}

// One row before its norm: x, or the rounded x + residual, which is stored on the way.
template <typename T>
struct Source {
  Row<const T> x, residual;
  Row<T> sum;

  __device__ Packet<T> take(int32_t first) const {
    const Packet<T> packet = x.get(first, T{});
    if (!residual.data) return packet;
    const Packet<T> other = residual.get(first, T{});
    Packet<T> out;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) out.put(j, store<T>(packet[j] + other[j]));
    sum.put(first, out);
    return out;
  }
  __device__ Packet<T> again(int32_t first) const {
    return residual.data ? Row<const T>{sum.data, sum.size, sum.vector}.get(first, T{})
                         : x.get(first, T{});
  }
};

template <typename T>
struct ForwardOperands {
  const T* x;
  const T* residual = nullptr;  // null: nothing is added
  const T* weight;
  T* sum = nullptr;  // x + residual, where there is a residual
  T* y;
  Acc<T>* rstd;
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    normalise_rows(ForwardOperands<T> o, RowTask task, NormOptions<Acc<T>> options) {
  using A = Acc<T>;
  BALORA_SHARED(A, scratch, kWarp + 1);
  const Group group = group_of(task);
  const Cut<T> cut = Cut<T>::columns(task.size);
  const Row<const T> weight = cut.row(o.weight);
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const int64_t at = n * task.size;
    const Source<T> source{cut.row(o.x + at), cut.row(o.residual ? o.residual + at : nullptr),
                           cut.row(o.sum ? o.sum + at : nullptr)};
    Packet<T> held[kHeldForward], scales[kHeldForward];
    A squares = 0;
    BALORA_UNROLL
    for (int k = 0; k < kHeldForward; ++k) {
      const int32_t first = cut.first(group.lane + k * group.threads);
      held[k] = source.take(first);
      scales[k] = weight.get(first, T{});
      squares += sum_of_squares<T>(held[k]);
    }
    const int32_t packets = cut.packets();
    for (int32_t i = group.lane + kHeldForward * group.threads; i < packets; i += group.threads) {
      squares += sum_of_squares<T>(source.take(cut.first(i)));
    }
    squares = group_reduce(task, squares, A(0), scratch);
    const A scale = reciprocal_deviation(squares / static_cast<A>(task.size), options.eps);
    if (group.lane == 0) o.rstd[n] = scale;
    const Row<T> y = cut.row(o.y + at);
    BALORA_UNROLL
    for (int k = 0; k < kHeldForward; ++k) {
      y.put(cut.first(group.lane + k * group.threads),
            normalised<T>(held[k], scales[k], scale, options));
    }
    for (int32_t i = group.lane + kHeldForward * group.threads; i < packets; i += group.threads) {
      const int32_t first = cut.first(i);
      y.put(first, normalised<T>(source.again(first), weight.get(first, T{}), scale, options));
    }
  }
}

template <typename T>
struct BackwardOperands {
  const T *dy, *dsum, *x, *weight;  // dsum may be null
  const Acc<T>* rstd;
  T* dx;            // may be null
  Acc<T>* partial;  // (groups,C), may be null
};

// One packet of a row in the backward.
template <typename T>
struct Slope {
  using A = Acc<T>;
  Packet<T> dy, x, weight;

  __device__ A dot(A offset) const {
    A sum = 0;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      sum += dy[j] * (weight[j] + offset) * x[j];
    }
    return sum;
  }
  // dsum + rstd * (dy * (weight + offset) - x * mean)
  __device__ Packet<T> gradient(const Packet<T>& dsum, A scale, A mean, A offset) const {
    Packet<T> out;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      const A through = rms_norm_gradient(dy[j], x[j], weight[j] + offset, mean);
      out.put(j, store<T>(dsum[j] + scale * through));
    }
    return out;
  }
  __device__ void add_weight(A (&total)[kPackOf<T>], A scale, int32_t round) const {
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      total[j] += dy[j] * rounded<T>(x[j] * scale, round);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    norm_gradients(BackwardOperands<T> o, RowTask task, NormOptions<Acc<T>> options) {
  using A = Acc<T>;
  BALORA_SHARED(A, scratch, kWarp + 1);
  const Group group = group_of(task);
  const Cut<T> cut = Cut<T>::columns(task.size);
  const Row<const T> weight = cut.row(o.weight);
  const int32_t packets = cut.packets();
  const int32_t beyond = group.lane + kHeldBackward * group.threads;
  A* const partial = o.partial ? o.partial + group.index * task.size : nullptr;
  A totals[kHeldBackward][kPackOf<T>] = {};
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const int64_t at = n * task.size;
    const Row<const T> dy = cut.row(o.dy + at), x = cut.row(o.x + at);
    const Row<const T> dsum = cut.row(o.dsum ? o.dsum + at : nullptr);
    const auto slope_at = [&](int32_t first) {
      return Slope<T>{dy.get(first, T{}), x.get(first, T{}), weight.get(first, T{})};
    };
    const auto dsum_at = [&](int32_t first) {
      return dsum.data ? dsum.get(first, T{}) : Packet<T>::filled(T{});
    };
    const A scale = o.rstd[n];
    Slope<T> held[kHeldBackward];
    Packet<T> beside[kHeldBackward];
    A dot = 0;
    BALORA_UNROLL
    for (int k = 0; k < kHeldBackward; ++k) {
      const int32_t first = cut.first(group.lane + k * group.threads);
      held[k] = slope_at(first);
      beside[k] = dsum_at(first);
      dot += held[k].dot(options.offset);
      held[k].add_weight(totals[k], scale, options.round);
    }
    for (int32_t i = beyond; i < packets; i += group.threads) {
      const Slope<T> slope = slope_at(cut.first(i));
      dot += slope.dot(options.offset);
      if (!partial) continue;
      A total[kPackOf<T>] = {};
      slope.add_weight(total, scale, options.round);
      leave_partial(partial, cut.first(i), task.size, total, n != group.index);
    }
    if (!o.dx) continue;
    dot = group_reduce(task, dot, A(0), scratch);
    const A mean = dot * scale * scale / static_cast<A>(task.size);
    const Row<T> dx = cut.row(o.dx + at);
    BALORA_UNROLL
    for (int k = 0; k < kHeldBackward; ++k) {
      dx.put(cut.first(group.lane + k * group.threads),
             held[k].gradient(beside[k], scale, mean, options.offset));
    }
    for (int32_t i = beyond; i < packets; i += group.threads) {
      const int32_t first = cut.first(i);
      dx.put(first, slope_at(first).gradient(dsum_at(first), scale, mean, options.offset));
    }
  }
  if (!partial || group.index >= task.groups) return;
  BALORA_UNROLL
  for (int k = 0; k < kHeldBackward; ++k) {
    leave_partial(partial, cut.first(group.lane + k * group.threads), task.size, totals[k], false);
  }
}

template <typename T, typename O>
NormOptions<Acc<T>> options_of(const O& o, double eps) {
  return {static_cast<Acc<T>>(eps), static_cast<Acc<T>>(o.weight_offset), o.cast_before_weight};
}

// The norm of x, or of x + residual where the operands have one.
template <typename O>
void forward(Context* ctx, const char* name, const O& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const RowPlan plan = plan_rows<T>(name, o.x->shape[0], o.x->shape[1], kHeldForward);
    ForwardOperands<T> operands{.x = data_of<T>(o.x),
                                .weight = data_of<T>(o.weight),
                                .y = data_of<T>(o.y),
                                .rstd = data_of<Acc<T>>(o.rstd)};
    if constexpr (std::is_same_v<O, balora_rms_norm_add_forward>) {
      operands.residual = data_of<T>(o.residual);
      operands.sum = data_of<T>(o.sum);
    }
    launch(ctx, name, plan.grid, normalise_rows<T>, operands, plan.task, options_of<T>(o, o.eps));
  });
}

}  // namespace

int32_t rms_norm_forward_kernel(Context* ctx, const balora_rms_norm_forward& o) {
  forward(ctx, "rms_norm_forward", o);
  return 0;
}

int32_t rms_norm_add_forward_kernel(Context* ctx, const balora_rms_norm_add_forward& o) {
  forward(ctx, "rms_norm_add_forward", o);
  return 0;
}

int32_t rms_norm_backward_kernel(Context* ctx, const balora_rms_norm_backward& o) {
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const RowPlan plan = plan_rows<T>("rms_norm_backward", rows, channels, kHeldBackward,
                                      o.dweight ? partial_groups(rows) : kMaxBlocks);
    A* partial = o.dweight ? workspace<A>(ctx, plan.task.groups * channels) : nullptr;
    const BackwardOperands<T> operands{.dy = data_of<T>(o.dy),
                                       .dsum = data_of<T>(o.dsum),
                                       .x = data_of<T>(o.x),
                                       .weight = data_of<T>(o.weight),
                                       .rstd = data_of<A>(o.rstd),
                                       .dx = data_of<T>(o.dx),
                                       .partial = partial};
    launch(ctx, "rms_norm_backward", plan.grid, norm_gradients<T>, operands, plan.task,
           options_of<T>(o, 0));
    if (o.dweight) {
      sum_columns(ctx, "rms_norm_backward", partial, data_of<A>(o.dweight), plan.task.groups,
                  channels);
    }
  });
  return 0;
}

}  // namespace balora::cuda
