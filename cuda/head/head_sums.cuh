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

// Sums of w = e^((x - shift) scale), and of w times something, over a thread's elements.
template <typename A>
struct Weighted {
  A weight = 0, value = 0;  // since the last flush
  double weights = 0, values = 0;

  __device__ void flush() {
    weights += static_cast<double>(weight), values += static_cast<double>(value);
    weight = value = A(0);
  }
  // The shift grows by `step`; `centred` values are w (x - shift).
  __device__ void rescale(A step, A scale, bool centred) {
    flush();
    const double factor = static_cast<double>(exp_or_zero(-step * scale));
    if (centred) values -= static_cast<double>(step) * weights;
    weights *= factor, values *= factor;
  }
};

// DivergenceSums over a thread's elements, beside running maxima.
template <typename A>
struct PairSums {
  A student = 0, teacher = 0, gap = 0, rest = 0;  // since the last flush
  DivergenceSums sums;

  __device__ void add(A x, A q, A w) {
    student += x, teacher += q;
    gap += q * w;
    rest += divergence_rest(q, x, w);
  }
  __device__ void flush() {
    sums.student += static_cast<double>(student), sums.teacher += static_cast<double>(teacher);
    sums.gap += static_cast<double>(gap), sums.rest += static_cast<double>(rest);
    student = teacher = gap = rest = A(0);
  }
  // The maxima grow by `step` and `teacher_step`, and their difference falls by `turn`.
  __device__ void raise(A step, A teacher_step, A turn, A scale) {
    flush();
    sums = sums.moved(static_cast<double>(turn * scale),
                      static_cast<double>(exp_or_zero(-step * scale)),
                      static_cast<double>(exp_or_zero(-teacher_step * scale)));
  }
};

}  // namespace balora::cuda
