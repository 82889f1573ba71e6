// The part of the fused head losses that one thread of a row's block holds: the row's logits as the
// losses see them, and sums of exponentials beside a running maximum. Sums run in f32 for 128
// elements, then in f64: plain f32 sums read the cross-entropy 1e-5 low at V = 49152.
#pragma once
#include <cmath>

#include "elementwise/device_math.cuh"
#include "kernels/shared/activations.h"
#include "kernels/shared/divergence.h"
#include "runtime/common.cuh"

namespace balora::cuda {

constexpr int kHeadPack = 4;  // neighbours that one thread takes

// Threads of a row's block, a multiple of 32.
inline unsigned head_row_threads(int64_t vocabulary, int64_t least, int64_t most) {
  const int64_t packs = ceil_div(vocabulary, kHeadPack * kWarp) * kWarp;
  return static_cast<unsigned>(std::clamp(packs, least, most));
}

__device__ inline float exp_or_zero(float x) {
  return x < -60.0f ? 0.0f : expf(x);  // nothing subnormal reaches dz
}
__device__ inline double exp_or_zero(double x) {
  return exp(x);
}

// Logits of a row as the losses see them, after soft-capping.
template <typename A>
struct HeadLogits {
  const A* data;
  int64_t count;
  A cap, inverse_cap;  // 0: none

  __device__ A capped(A x) const { return cap > A(0) ? soft_capped<DeviceMath>(x, cap) : x; }
  __device__ A at(int64_t i) const { return capped(data[i]); }
  // Elements 4 pack .. 4 pack + 3; returns how many there are.
  __device__ int load_pack(int64_t pack, A (&x)[kHeadPack]) const {
    const int64_t first = pack * kHeadPack;
    if (first + kHeadPack <= count) {
      const auto all = *reinterpret_cast<const Pack<A, kHeadPack>*>(data + first);
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) x[i] = capped(all.at[i]);
      return kHeadPack;
    }
    BALORA_UNROLL
    for (int i = 0; i < kHeadPack; ++i) x[i] = first + i < count ? at(first + i) : -INFINITY;
    return static_cast<int>(count - first);
  }
};

// A thread's sum.
template <typename A>
struct WideSum {
  A part = 0;  // since the last flush
  double whole = 0;

  __device__ void operator+=(A value) { part += value; }
  __device__ void flush() { whole += static_cast<double>(part), part = A(0); }
  __device__ void scale_by(A factor) { flush(), whole *= static_cast<double>(factor); }
};

// Sums of w = e^((x - shift) scale) and of w (x - shift) over a thread's elements.
template <typename A>
struct Weighted {
  WideSum<A> weights, values;

  __device__ void flush() { weights.flush(), values.flush(); }
  // The shift grows by `step`.
  __device__ void rescale(A step, A scale) {
    flush();
    values.whole -= static_cast<double>(step) * weights.whole;
    const A factor = exp_or_zero(-step * scale);
    weights.scale_by(factor), values.scale_by(factor);
  }
};

}  // namespace balora::cuda
