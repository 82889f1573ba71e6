// The row statistics of a softmax in one read of the row: each thread keeps its running maximum and
// the sum of exponentials about it. Over a vocabulary of 49k an f32 running sum reads the
// log-sum-exp 1e-5 low, so f32 adds up no more than 32 neighbours (a batch), and batches and
// threads are added in double: one f64 addition in 32 elements, which even a GPU with few f64 units
// does not notice. What is left is the rounding of single exponentials, which averages out: 1e-7 of
// the sum, whatever the row's length.
#pragma once
#include "device/rows.cuh"

namespace balora::cuda {

template <typename T>
__device__ inline T lowest() {
  return store<T>(static_cast<Acc<T>>(-INFINITY));
}

// The logarithm of the sum of exponentials of a row that a group of threads takes in.
template <typename T>
struct LogSum {
  using A = Acc<T>;
  A highest = static_cast<A>(-INFINITY);
  double total = 0;  // of exp(x - highest)

  // Elements outside the row are lowest<T>(). A NaN stays in the total.
  template <int K>
  __device__ void take(const Packet<T> (&batch)[K]) {
    A top = highest;
    BALORA_UNROLL
    for (int k = 0; k < K; ++k) {
      BALORA_UNROLL
      for (int j = 0; j < kPackOf<T>; ++j) top = batch[k][j] > top ? batch[k][j] : top;
    }
    if (top > highest) total *= static_cast<double>(std::exp(highest - top));
    highest = top;
    const A shift = top > static_cast<A>(-INFINITY) ? top : A(0);
    A sum = 0;
    BALORA_UNROLL
    for (int k = 0; k < K; ++k) {
      BALORA_UNROLL
      for (int j = 0; j < kPackOf<T>; ++j) sum += std::exp(batch[k][j] - shift);
    }
    total += static_cast<double>(sum);
  }

  // Over the group, the same in every thread; NaN for a row of nothing but -infinity, as on the
  // CPU. scratch and wide have 33 elements in shared memory.
  __device__ double finish(const RowTask& task, const Group& group, A* scratch,
                           double* wide) const {
    const A top = group_reduce(task, highest, static_cast<A>(-INFINITY), scratch, Max{});
    const double part =
        top > highest ? total * static_cast<double>(std::exp(highest - top)) : total;
    const double sum = group_reduce(task, part, 0.0, wide);
    double result = 0;
    if (group.lane == 0) {
      result = top > static_cast<A>(-INFINITY) || task.size == 0
                   ? static_cast<double>(top) + std::log(sum)
                   : static_cast<double>(NAN);
    }
    return group_broadcast(task, result, wide);
  }
};

// Takes in the packets of a row from `from` on, K a thread at a time.
template <int K, typename T>
__device__ inline void take_rest(LogSum<T>& sum, const Row<const T>& row, const Cut<T>& cut,
                                 const Group& group, int32_t from) {
  const int32_t packets = cut.packets();
  for (int32_t i = from + group.lane; i - group.lane < packets; i += K * group.threads) {
    Packet<T> batch[K];
    BALORA_UNROLL
    for (int k = 0; k < K; ++k) {
      batch[k] = row.get(cut.first(i + k * group.threads), lowest<T>());
    }
    sum.take(batch);
  }
}

}  // namespace balora::cuda
