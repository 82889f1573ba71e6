// What the fused head losses do with a teacher that came as its summary (teacher_summary.cu): its
// entropy H(q) and mean row mu = sum_j q_j w_j. KL(q || p) = lse(z/T) - (H(q) + h mu / T), so the
// row's pass wants one number, and mu leaves dH as it came into h mu. Both kernels read h or dH and
// mu once, by one block a row: 6 and 10 bytes an element with bf16, together 0.2 ms of an H100 at
// M = 8192, C = 4096. A product of h and mu is exact in f64, where they are summed.
#pragma once
#include "head/head_sums.cuh"

namespace balora::cuda {

constexpr int kMeanThreads = 128;

// offset (M) f64 = T H(q) + h mu
template <typename T>
__global__ void teacher_offsets(const T* h, const Acc<T>* mean, const double* entropy,
                                int64_t channels, double temperature, double* offset) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const int64_t row = blockIdx.x, first = row * channels;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
    sum += static_cast<double>(load(h[first + c])) * static_cast<double>(mean[first + c]);
  }
  sum = block_reduce(sum, 0.0, scratch);
  if (threadIdx.x == 0) offset[row] = temperature * entropy[row] + sum;
}

// dh = sum - consistency_scale T mu, rounded once; rows outside the regularizers (u8, null: none)
// are sum alone.
template <typename T>
__global__ void take_out_mean(const Acc<T>* sum, const Acc<T>* mean, const uint8_t* regularized,
                              int64_t channels, HeadOptions options, const double* scales, T* dh) {
  const HeadOptions o = scaled_options(options, scales);
  const auto factor = static_cast<Acc<T>>(o.consistency_scale * o.temperature);
  const int64_t row = blockIdx.x, first = row * channels;
  const bool inside = !regularized || regularized[row] != 0;
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
    const Acc<T> value = sum[first + c];
    dh[first + c] = store<T>(inside ? value - factor * mean[first + c] : value);
  }
}

}  // namespace balora::cuda
