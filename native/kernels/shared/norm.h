// Formulas of norms and softmax, an element at a time; sums over the row are the device's.
#pragma once
#include <cmath>

#include "kernels/shared/host_device.h"

namespace balora {

// rstd = 1 / sqrt(mean + eps), of a mean of squares
template <typename A>
BALORA_HOST_DEVICE A reciprocal_deviation(A mean, A eps) {
  return A(1) / std::sqrt(mean + eps);
}

// RMSNorm's gradient before rstd, with mean = sum(dy * (weight + offset) * x) * rstd^2 / C:
//   dx = rstd * (dy * (weight + offset) - x * mean)
template <typename A>
BALORA_HOST_DEVICE A rms_norm_gradient(A dy, A x, A weight, A mean) {
  return dy * weight - x * mean;
}

// LayerNorm of one element: xhat = (x - mean) * rstd, y = xhat * weight + bias
template <typename A>
BALORA_HOST_DEVICE A normalised(A x, A mean, A rstd) {
  return (x - mean) * rstd;
}

// LayerNorm's gradient, with g = dy * weight and the row's means of g and of g * xhat:
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat))
template <typename A>
BALORA_HOST_DEVICE A layer_norm_gradient(A g, A xhat, A rstd, A mean_g, A mean_dot) {
  return rstd * (g - mean_g - xhat * mean_dot);
}

// Gradients of softmax, p = e^(x - lse), with sum = sum(dy * p), and of its logarithm, with
// sum = sum(dy):
//   softmax:    dx = p * (dy - sum)
//   logSoftmax: dx = dy - p * sum
template <typename A>
BALORA_HOST_DEVICE A softmax_gradient(A dy, A p, A sum) {
  return (dy - sum) * p;
}
template <typename A>
BALORA_HOST_DEVICE A log_softmax_gradient(A dy, A p, A sum) {
  return dy - sum * p;
}

}  // namespace balora
