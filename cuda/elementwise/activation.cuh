// Activations of the mlp with their slopes; formulas as in kernels/cpu/elementwise/gated.cc.
#pragma once
#include <cmath>

#include "runtime/common.cuh"

namespace balora::cuda {

template <typename A>
struct Activated {
  A value, slope;
};

// 1 / (1 + e^-x)
template <typename A>
__device__ inline A sigmoid(A x) {
  return A(1) / (A(1) + std::exp(-x));
}
// Phi(x), the normal distribution.
template <typename A>
__device__ inline A normal_cdf(A x) {
  return A(0.5) * (A(1) + std::erf(x * static_cast<A>(0.70710678118654752440)));
}

template <typename A>
__device__ inline Activated<A> silu(A x) {
  const A s = sigmoid(x);
  return {x * s, s * (A(1) + x * (A(1) - s))};
}

template <typename A>
__device__ inline Activated<A> gelu(A x) {
  constexpr A kDensity = static_cast<A>(0.39894228040143267794);  // 1 / sqrt(2 pi)
  const A cdf = normal_cdf(x);
  return {x * cdf, cdf + x * kDensity * std::exp(A(-0.5) * x * x)};
}

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
template <typename A>
__device__ inline Activated<A> gelu_tanh(A x) {
  constexpr A kScale = static_cast<A>(0.79788456080286535588);  // sqrt(2 / pi)
  constexpr A kCubic = static_cast<A>(0.044715);
  const A square = x * x;
  const A t = std::tanh(kScale * x * (A(1) + kCubic * square));
  const A half = A(0.5) * (A(1) + t);
  const A inner_slope = kScale * (A(1) + A(3) * kCubic * square);
  return {x * half, half + A(0.5) * x * (A(1) - t * t) * inner_slope};
}

}  // namespace balora::cuda
