// softmax and logSoftmax over the last dimension (kernels/cpu/norm/softmax.cc has the formulas).
// One read of the row finds maximum and sum together (log_sum_exp.cuh); the first packets stay in
// registers, so rows up to 16384 in bf16 (8192 in the backward, half of both in f32) are read once
// and longer ones a second time, mostly from the L2 cache: 264 rows of 49k under way are 26 MB. The
// forward moves 2 * size bytes an element, the backward 3 * size, with some 12 flops and one
// exponential a pass. N=2048, C=2048 in bf16: 17 and 25 MB, 5 and 7.5 us at 3.35 TB/s. The
// backward's sum over the row goes to double after 16 elements, for the reason
// that log_sum_exp.cuh gives.
#include "head/log_sum_exp.cuh"
#include "kernels/shared/norm.h"

namespace balora::cuda {
namespace {

constexpr int kHeldForward = 4, kHeldBackward = 2;

// A row's log-sum-exp, and what its rounding left.
template <typename A>
struct Shift {
  A sum, rest;
};

template <typename T>
__device__ inline Packet<T> normalised(const Packet<T>& x, const Shift<Acc<T>>& shift,
                                       int32_t logarithm) {
  Packet<T> out;
  BALORA_UNROLL
  for (int j = 0; j < kPackOf<T>; ++j) {
    const Acc<T> below = x[j] - shift.sum;
    out.put(j, store<T>(logarithm ? below - shift.rest : std::exp(below)));
  }
  return out;
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    normalise_rows(const T* x, T* y, Acc<T>* lse, RowTask task, int32_t logarithm) {
  using A = Acc<T>;
  BALORA_SHARED(A, scratch, kWarp + 1);
  BALORA_SHARED(double, wide, kWarp + 1);
  const Group group = group_of(task);
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const T* at = x + n * task.size;
    const Cut<T> cut = Cut<T>::aligned(at, task.size);
    const Row<const T> row = cut.row(at);
    Packet<T> held[kHeldForward];
    BALORA_UNROLL
    for (int k = 0; k < kHeldForward; ++k) {
      held[k] = row.get(cut.first(group.lane + k * group.threads), lowest<T>());
    }
    LogSum<T> sum;
    sum.take(held);
    const int32_t beyond = kHeldForward * group.threads;
    take_rest<kHeldForward>(sum, row, cut, group, beyond);
    const double exact = sum.finish(task, group, scratch, wide);
    const A rounded = static_cast<A>(exact);
    const Shift<A> shift{rounded, static_cast<A>(exact - static_cast<double>(rounded))};
    if (group.lane == 0) lse[n] = rounded;
    const Row<T> out = cut.row(y + n * task.size);
    BALORA_UNROLL
    for (int k = 0; k < kHeldForward; ++k) {
      out.put(cut.first(group.lane + k * group.threads), normalised(held[k], shift, logarithm));
    }
    for (int32_t i = beyond + group.lane; i < cut.packets(); i += group.threads) {
      const int32_t first = cut.first(i);
      out.put(first, normalised(row.get(first, lowest<T>()), shift, logarithm));
    }
  }
}

// One packet of a row in the backward; outside the row dy is zero and x the lowest.
template <typename T>
struct Slope {
  using A = Acc<T>;
  Packet<T> dy, x;

  __device__ A sum(A lse, int32_t logarithm) const {
    A total = 0;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      total += logarithm ? dy[j] : dy[j] * std::exp(x[j] - lse);
    }
    return total;
  }
  __device__ Packet<T> gradient(A lse, A sum, int32_t logarithm) const {
    Packet<T> out;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<T>; ++j) {
      const A p = std::exp(x[j] - lse);
      out.put(j, store<T>(logarithm ? log_softmax_gradient(dy[j], p, sum)
                                    : softmax_gradient(dy[j], p, sum)));
    }
    return out;
  }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    softmax_gradients(const T* dy, const T* x, const Acc<T>* lse, T* dx, RowTask task,
                      int32_t logarithm) {
  using A = Acc<T>;
  BALORA_SHARED(double, wide, kWarp + 1);
  const Group group = group_of(task);
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const int64_t at = n * task.size;
    const Cut<T> cut = Cut<T>::aligned(x + at, task.size);
    const Row<const T> slopes = cut.row(dy + at), row = cut.row(x + at);
    const auto slope_at = [&](int32_t first) {
      return Slope<T>{slopes.get(first, T{}), row.get(first, lowest<T>())};
    };
    const A shift = lse[n];
    const int32_t beyond = group.lane + kHeldBackward * group.threads, packets = cut.packets();
    Slope<T> held[kHeldBackward];
    A first_sum = 0;
    BALORA_UNROLL
    for (int k = 0; k < kHeldBackward; ++k) {
      held[k] = slope_at(cut.first(group.lane + k * group.threads));
      first_sum += held[k].sum(shift, logarithm);
    }
    double total = static_cast<double>(first_sum);
    for (int32_t i = beyond; i < packets; i += group.threads) {
      total += static_cast<double>(slope_at(cut.first(i)).sum(shift, logarithm));
    }
    const A sum = static_cast<A>(group_reduce(task, total, 0.0, wide));
    const Row<T> out = cut.row(dx + at);
    BALORA_UNROLL
    for (int k = 0; k < kHeldBackward; ++k) {
      out.put(cut.first(group.lane + k * group.threads), held[k].gradient(shift, sum, logarithm));
    }
    for (int32_t i = beyond; i < packets; i += group.threads) {
      out.put(cut.first(i), slope_at(cut.first(i)).gradient(shift, sum, logarithm));
    }
  }
}

}  // namespace

int32_t softmax_forward_kernel(Context* ctx, const balora_softmax_forward& o) {
  const char* name = "softmax_forward";
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const RowPlan plan = plan_rows<T>(name, o.x->shape[0], o.x->shape[1], kHeldForward);
    launch(ctx, name, plan.grid, normalise_rows<T>, data_of<T>(o.x), data_of<T>(o.y),
           data_of<Acc<T>>(o.lse), plan.task, o.logarithm);
  });
  return 0;
}

int32_t softmax_backward_kernel(Context* ctx, const balora_softmax_backward& o) {
  const char* name = "softmax_backward";
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const RowPlan plan = plan_rows<T>(name, o.x->shape[0], o.x->shape[1], kHeldBackward);
    launch(ctx, name, plan.grid, softmax_gradients<T>, data_of<T>(o.dy), data_of<T>(o.x),
           data_of<Acc<T>>(o.lse), data_of<T>(o.dx), plan.task, o.logarithm);
  });
  return 0;
}

}  // namespace balora::cuda
