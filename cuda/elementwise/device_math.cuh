// The device's elementary functions, for the formulas of kernels/shared.
#pragma once
#include <cmath>

#include "runtime/common.cuh"

namespace balora::cuda {

struct DeviceMath {
  template <typename A>
  static BALORA_HOST_DEVICE A exp(A x) {
    return std::exp(x);
  }
  template <typename A>
  static BALORA_HOST_DEVICE A log(A x) {
    return std::log(x);
  }
  template <typename A>
  static BALORA_HOST_DEVICE A tanh(A x) {
    return std::tanh(x);
  }
  template <typename A>
  static BALORA_HOST_DEVICE A erf(A x) {
    return std::erf(x);
  }
  // 1 / (1 + e^-x)
  template <typename A>
  static BALORA_HOST_DEVICE A sigmoid(A x) {
    return A(1) / (A(1) + std::exp(-x));
  }
  // ln(1 + e^x), exact in both tails
  template <typename A>
  static BALORA_HOST_DEVICE A softplus(A x) {
    return (x > A(0) ? x : A(0)) + std::log1p(std::exp(x < A(0) ? x : -x));
  }
};

}  // namespace balora::cuda
