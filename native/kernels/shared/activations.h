// Activations of the mlp with their slopes, and soft-capping. Math has the device's own exp, tanh,
// erf and so on as static functions. Each sum has one product at most, which a compiler may fuse
// with it. Of two it would choose one by what else is computed, and a gate would differ in its last
// bits from the function alone.
#pragma once
#include "kernels/shared/host_device.h"

namespace balora {

// An activation at x, and its derivative there.
template <typename A>
struct Activated {
  A value, slope;
};

// x / (1 + e^-x)
template <typename Math, typename A>
BALORA_HOST_DEVICE Activated<A> silu(A x) {
  const A s = Math::sigmoid(x);
  return {x * s, s * (A(1) + x * (A(1) - s))};
}

// Phi(x), the distribution function of the standard normal.
template <typename Math, typename A>
BALORA_HOST_DEVICE A normal_cdf(A x) {
  constexpr A kSqrtHalf = static_cast<A>(0.70710678118654752440);  // 1 / sqrt(2)
  return A(0.5) + A(0.5) * Math::erf(x * kSqrtHalf);
}

// x * Phi(x)
template <typename Math, typename A>
BALORA_HOST_DEVICE Activated<A> gelu(A x) {
  constexpr A kDensity = static_cast<A>(0.39894228040143267794);  // 1 / sqrt(2 pi)
  const A cdf = normal_cdf<Math>(x);
  return {x * cdf, cdf + x * kDensity * Math::exp(A(-0.5) * x * x)};
}

// The tanh form of gelu (Hendrycks and Gimpel, 2016; "gelu_new" or "gelu_pytorch_tanh"):
//   x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
template <typename A>
constexpr A kGeluTanhScale = static_cast<A>(0.79788456080286535588);  // sqrt(2 / pi)
template <typename A>
constexpr A kGeluTanhCubic = static_cast<A>(0.044715);
template <typename Math, typename A>
BALORA_HOST_DEVICE Activated<A> gelu_tanh(A x) {
  const A scale = kGeluTanhScale<A>, cubic = kGeluTanhCubic<A>;
  const A square = x * x;
  const A t = Math::tanh(scale * x * (A(1) + cubic * square));
  const A half = A(0.5) + A(0.5) * t;
  const A inner_slope = scale * (A(1) + A(3) * cubic * square);
  return {x * half, half + A(0.5) * x * (A(1) - t * t) * inner_slope};
}

// Soft-capping of scores and logits to cap * tanh(x / cap), cap > 0.
template <typename Math, typename A>
BALORA_HOST_DEVICE A soft_capped(A x, A cap) {
  return cap * Math::tanh(x / cap);
}

}  // namespace balora
