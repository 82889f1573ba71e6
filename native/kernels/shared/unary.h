// Elementwise functions of one operand and their derivatives. a and b are the two parameters of
// clamp (low, high) and affine (a * x + b).
#pragma once
#include <cmath>

#include "kernels/shared/activations.h"
#include "kernels/shared/op_codes.h"

namespace balora {

// op(x; a, b); Math as in activations.h.
template <int Op, typename Math, typename A>
BALORA_HOST_DEVICE A unary_value(A x, A a, A b) {
  if constexpr (Op == BALORA_NEG) return -x;
  if constexpr (Op == BALORA_ABS) return std::abs(x);
  if constexpr (Op == BALORA_EXP) return Math::exp(x);
  if constexpr (Op == BALORA_LOG) return Math::log(x);
  if constexpr (Op == BALORA_SQRT) return std::sqrt(x);
  if constexpr (Op == BALORA_RSQRT) return A(1) / std::sqrt(x);
  if constexpr (Op == BALORA_SQUARE) return x * x;
  if constexpr (Op == BALORA_SIN) return std::sin(x);
  if constexpr (Op == BALORA_COS) return std::cos(x);
  if constexpr (Op == BALORA_TANH) return Math::tanh(x);
  if constexpr (Op == BALORA_SIGMOID) return Math::sigmoid(x);
  if constexpr (Op == BALORA_RELU) return x < A(0) ? A(0) : x;
  if constexpr (Op == BALORA_SILU) return silu<Math>(x).value;
  if constexpr (Op == BALORA_GELU) return gelu<Math>(x).value;
  if constexpr (Op == BALORA_GELU_TANH) return gelu_tanh<Math>(x).value;
  if constexpr (Op == BALORA_SOFTPLUS) return Math::softplus(x);
  if constexpr (Op == BALORA_CLAMP) return x < a ? a : x > b ? b : x;
  if constexpr (Op == BALORA_AFFINE) return a * x + b;
}

// d op(x; a, b) / d x. s is what the forward saved: the result for exp, sqrt, rsqrt, tanh, sigmoid
// and relu, whose derivative is cheapest from it, else the operand (saves_result in
// ops/elementwise/unary.cc).
template <int Op, typename Math, typename A>
BALORA_HOST_DEVICE A unary_slope(A s, A a, A b) {
  if constexpr (Op == BALORA_NEG) return A(-1);
  if constexpr (Op == BALORA_ABS) return s > A(0) ? A(1) : s < A(0) ? A(-1) : A(0);
  if constexpr (Op == BALORA_EXP) return s;
  if constexpr (Op == BALORA_LOG) return A(1) / s;
  if constexpr (Op == BALORA_SQRT) return A(0.5) / s;
  if constexpr (Op == BALORA_RSQRT) return A(-0.5) * s * s * s;
  if constexpr (Op == BALORA_SQUARE) return A(2) * s;
  if constexpr (Op == BALORA_SIN) return std::cos(s);
  if constexpr (Op == BALORA_COS) return -std::sin(s);
  if constexpr (Op == BALORA_TANH) return A(1) - s * s;
  if constexpr (Op == BALORA_SIGMOID) return s * (A(1) - s);
  if constexpr (Op == BALORA_RELU) return s > A(0) ? A(1) : A(0);
  if constexpr (Op == BALORA_SILU) return silu<Math>(s).slope;
  if constexpr (Op == BALORA_GELU) return gelu<Math>(s).slope;
  if constexpr (Op == BALORA_GELU_TANH) return gelu_tanh<Math>(s).slope;
  if constexpr (Op == BALORA_SOFTPLUS) return Math::sigmoid(s);
  if constexpr (Op == BALORA_CLAMP) return s >= a && s <= b ? A(1) : A(0);
  if constexpr (Op == BALORA_AFFINE) return a;
}

}  // namespace balora
