// LayerNorm over the last dimension (kernels/cpu/norm/layer_norm.cc has the formulas); weight and
// bias may be absent. Bound by memory, each row read once into registers (rows.cuh), where the
// second pass for the variance finds it: the forward moves 2 * size bytes an element, the backward
// 3 * size, about 12 flops an element. N=2048, C=1024 in bf16: 8.4 and 12.6 MB, 2.5 and 3.8 us
// at 3.35 TB/s. The gradients of weight and bias stay in registers over the rows of a group, which
// leaves a partial row of each that sum_columns adds in order. Sums are of at most 16 elements a
// thread up to C = 8192 in bf16, then a tree.
#include "device/rows.cuh"
#include "kernels/shared/norm.h"

namespace balora::cuda {
namespace {

constexpr int kHeld = 2;

template <typename T>
struct ForwardOperands {
  const T *x, *weight, *bias;  // weight and bias may be null
  T* y;
  Acc<T>*mean, *rstd;
};

template <typename T>
struct BackwardOperands {
  const T *dy, *x, *weight;  // weight may be null
  const Acc<T>*mean, *rstd;
  T* dx;                   // may be null
  Acc<T>*dweight, *dbias;  // (groups,C), each may be null
};

// A packet of an operand over the channels, or of a constant where it is absent.
template <typename T>
__device__ inline Packet<T> channels(const Row<const T>& row, int32_t first, float missing) {
  const T constant = store<T>(static_cast<Acc<T>>(missing));
  return row.data ? row.get(first, T{}) : Packet<T>::filled(constant);
}

// Sum of the packet's elements within the row.
template <typename T>
__device__ inline Acc<T> sum_of(const Packet<T>& x) {
  Acc<T> sum = 0;
  BALORA_UNROLL
  for (int j = 0; j < kPackOf<T>; ++j) sum += x[j];
  return sum;
}

// Sum of (x - mean)^2; what lies outside the row counts nothing.
template <typename T>
__device__ inline Acc<T> squares_of(const Packet<T>& x, Acc<T> mean, int32_t first, int32_t size) {
  Acc<T> sum = 0;
  BALORA_UNROLL
  for (int j = 0; j < kPackOf<T>; ++j) {
    const Acc<T> centred = first + j < size ? x[j] - mean : Acc<T>(0);
    sum += centred * centred;
  }
  return sum;
}

template <typename T>
__device__ inline Packet<T> normalised_packet(const Packet<T>& x, const Packet<T>& weight,
                                              const Packet<T>& bias, Acc<T> mean, Acc<T> rstd) {
  Packet<T> out;
  BALORA_UNROLL
  for (int j = 0; j < kPackOf<T>; ++j) {
    out.put(j, store<T>(normalised(x[j], mean, rstd) * weight[j] + bias[j]));
  }
  return out;
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    normalise_rows(ForwardOperands<T> o, RowTask task, Acc<T> eps) {
  using A = Acc<T>;
  BALORA_SHARED(A, scratch, kWarp + 1);
  const Group group = group_of(task);
  const Cut<T> cut = Cut<T>::columns(task.size);
  const Row<const T> weight = cut.row(o.weight), bias = cut.row(o.bias);
  const int32_t packets = cut.packets(), beyond = group.lane + kHeld * group.threads;
  const A count = static_cast<A>(task.size);
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const Row<const T> x = cut.row(o.x + n * task.size);
    const Row<T> y = cut.row(o.y + n * task.size);
    Packet<T> held[kHeld], scale[kHeld], shift[kHeld];
    A sum = 0, squares = 0;
    BALORA_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      const int32_t first = cut.first(group.lane + k * group.threads);
      held[k] = x.get(first, T{});
      scale[k] = channels(weight, first, 1);
      shift[k] = channels(bias, first, 0);
      sum += sum_of(held[k]);
    }
    for (int32_t i = beyond; i < packets; i += group.threads)
      sum += sum_of(x.get(cut.first(i), T{}));
    const A mean = group_reduce(task, sum, A(0), scratch) / count;
    BALORA_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      squares += squares_of(held[k], mean, cut.first(group.lane + k * group.threads), task.size);
    }
    for (int32_t i = beyond; i < packets; i += group.threads) {
      squares += squares_of(x.get(cut.first(i), T{}), mean, cut.first(i), task.size);
    }
    const A variance = group_reduce(task, squares, A(0), scratch) / count;
    const A rstd = reciprocal_deviation(variance, eps);
    if (group.lane == 0) {
      o.mean[n] = mean;
      o.rstd[n] = rstd;
    }
    BALORA_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      y.put(cut.first(group.lane + k * group.threads),
            normalised_packet(held[k], scale[k], shift[k], mean, rstd));
    }
    for (int32_t i = beyond; i < packets; i += group.threads) {
      const int32_t first = cut.first(i);
      y.put(first, normalised_packet(x.get(first, T{}), channels(weight, first, 1),
                                     channels(bias, first, 0), mean, rstd));
    }
  }
}

// One packet of a row in the backward; where the row ends dy is zero, so its part of a sum is too.
template <typename T>
struct Slope {
  using A = Acc<T>;
  Packet<T> dy, x, weight;

  __device__ void add(A mean, A rstd, A& sum, A& dot) const {
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      const A scaled = dy[j] * weight[j];
      sum += scaled;
      dot += scaled * normalised(x[j], mean, rstd);
    }
  }
  // sum and dot are means over the row
  __device__ Packet<T> gradient(A mean, A rstd, A sum, A dot) const {
    Packet<T> out;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      const A unit = normalised(x[j], mean, rstd);
      out.put(j, store<T>(layer_norm_gradient(dy[j] * weight[j], unit, rstd, sum, dot)));
    }
    return out;
  }
  __device__ void add_channels(A mean, A rstd, A (&dweight)[kPackOf<T>],
                               A (&dbias)[kPackOf<T>]) const {
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      dweight[j] += dy[j] * normalised(x[j], mean, rstd);
      dbias[j] += dy[j];
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    norm_gradients(BackwardOperands<T> o, RowTask task) {
  using A = Acc<T>;
  constexpr int W = kPackOf<T>;
  BALORA_SHARED(A, scratch, kWarp + 1);
  const Group group = group_of(task);
  const Cut<T> cut = Cut<T>::columns(task.size);
  const Row<const T> weight = cut.row(o.weight);
  const int32_t packets = cut.packets(), beyond = group.lane + kHeld * group.threads;
  A* const dweight = o.dweight ? o.dweight + group.index * task.size : nullptr;
  A* const dbias = o.dbias ? o.dbias + group.index * task.size : nullptr;
  A weight_totals[kHeld][W] = {}, bias_totals[kHeld][W] = {};
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const int64_t at = n * task.size;
    const Row<const T> dy = cut.row(o.dy + at), x = cut.row(o.x + at);
    const auto slope_at = [&](int32_t first) {
      return Slope<T>{dy.get(first, T{}), x.get(first, T{}), channels(weight, first, 1)};
    };
    const A mean = o.mean[n], rstd = o.rstd[n];
    Slope<T> held[kHeld];
    A sum = 0, dot = 0;
    BALORA_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      held[k] = slope_at(cut.first(group.lane + k * group.threads));
      held[k].add(mean, rstd, sum, dot);
      held[k].add_channels(mean, rstd, weight_totals[k], bias_totals[k]);
    }
    for (int32_t i = beyond; i < packets; i += group.threads) {
      const Slope<T> slope = slope_at(cut.first(i));
      slope.add(mean, rstd, sum, dot);
      A weight_total[W] = {}, bias_total[W] = {};
      slope.add_channels(mean, rstd, weight_total, bias_total);
      leave_partial(dweight, cut.first(i), task.size, weight_total, n != group.index);
      leave_partial(dbias, cut.first(i), task.size, bias_total, n != group.index);
    }
    if (!o.dx) continue;
    const A count = static_cast<A>(task.size);
    sum = group_reduce(task, sum, A(0), scratch) / count;
    dot = group_reduce(task, dot, A(0), scratch) / count;
    const Row<T> dx = cut.row(o.dx + at);
    BALORA_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      dx.put(cut.first(group.lane + k * group.threads), held[k].gradient(mean, rstd, sum, dot));
    }
    for (int32_t i = beyond; i < packets; i += group.threads) {
      dx.put(cut.first(i), slope_at(cut.first(i)).gradient(mean, rstd, sum, dot));
    }
  }
  if (group.index >= task.groups) return;
  BALORA_UNROLL
  for (int k = 0; k < kHeld; ++k) {
    const int32_t first = cut.first(group.lane + k * group.threads);
    leave_partial(dweight, first, task.size, weight_totals[k], false);
    leave_partial(dbias, first, task.size, bias_totals[k], false);
  }
}

}  // namespace

int32_t layer_norm_forward_kernel(Context* ctx, const balora_layer_norm_forward& o) {
  const char* name = "layer_norm_forward";
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const RowPlan plan = plan_rows<T>(name, o.x->shape[0], o.x->shape[1], kHeld);
    const ForwardOperands<T> operands{.x = data_of<T>(o.x),
                                      .weight = data_of<T>(o.weight),
                                      .bias = data_of<T>(o.bias),
                                      .y = data_of<T>(o.y),
                                      .mean = data_of<A>(o.mean),
                                      .rstd = data_of<A>(o.rstd)};
    launch(ctx, name, plan.grid, normalise_rows<T>, operands, plan.task, o.eps);
  });
  return 0;
}

int32_t layer_norm_backward_kernel(Context* ctx, const balora_layer_norm_backward& o) {
  const char* name = "layer_norm_backward";
  const int64_t rows = o.x->shape[0], channels = o.x->shape[1];
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const RowPlan plan = plan_rows<T>(name, rows, channels, kHeld,
                                      o.dweight || o.dbias ? partial_groups(rows) : kMaxBlocks);
    const int64_t groups = plan.task.groups;
    A* weight_partial = o.dweight ? workspace<A>(ctx, groups * channels) : nullptr;
    A* bias_partial = o.dbias ? workspace<A>(ctx, groups * channels) : nullptr;
    const BackwardOperands<T> operands{.dy = data_of<T>(o.dy),
                                       .x = data_of<T>(o.x),
                                       .weight = data_of<T>(o.weight),
                                       .mean = data_of<A>(o.mean),
                                       .rstd = data_of<A>(o.rstd),
                                       .dx = data_of<T>(o.dx),
                                       .dweight = weight_partial,
                                       .dbias = bias_partial};
    launch(ctx, name, plan.grid, norm_gradients<T>, operands, plan.task);
    if (o.dweight) sum_columns(ctx, name, weight_partial, data_of<A>(o.dweight), groups, channels);
    if (o.dbias) sum_columns(ctx, name, bias_partial, data_of<A>(o.dbias), groups, channels);
  });
  return 0;
}

}  // namespace balora::cuda
