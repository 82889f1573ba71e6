// Updates of the optimizers, an element at a time.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/operands/optimizer.h"
#include "kernels/shared/host_device.h"

namespace balora {

// ---- AdamW (Loshchilov and Hutter, 2019), in torch's order --------------------------------------
//   p -= lr * wd * p
//   m += (1 - b1) * (g - m)
//   v += (1 - b2) * (g^2 - v)
//   p -= lr / c1 * m / (sqrt(v) / sqrt(c2) + eps),  c1 = 1 - b1^t, c2 = 1 - b2^t

// Factors that all elements of a tensor have in common.
template <typename T>
struct AdamwFactors {
  T decay;         // 1 - lr * wd
  T keep1, keep2;  // 1 - b1, 1 - b2
  T step;          // lr / c1
  T root;          // 1 / sqrt(c2)
  T eps;
  T scale;  // of the gradient
};

// The decay of a tensor with this rate (balora_adamw_rate).
template <typename T>
BALORA_HOST_DEVICE T adamw_decay(const double* rate, double weight_decay) {
  return static_cast<T>(1 - rate[BALORA_RATE_LR] * weight_decay);
}

template <typename T>
BALORA_HOST_DEVICE void adamw_update(const AdamwFactors<T>& k, T grad, T& param, T& m, T& v) {
  const T g = grad * k.scale;
  m = m + k.keep1 * (g - m);
  v = v + k.keep2 * (g * g - v);
  param = param * k.decay - k.step * m / (std::sqrt(v) * k.root + k.eps);
}

// ---- SGD ----------------------------------------------------------------------------------------
//   g += wd * p
//   buffer = first ? g : mu * buffer + (1 - dampening) * g
//   p -= lr * (nesterov ? g + mu * buffer : buffer)

template <typename T>
struct SgdFactors {
  T lr, momentum;
  T fresh;  // 1 - dampening
  T decay;
  bool nesterov, first;
};

template <typename T>
SgdFactors<T> sgd_factors(const balora_sgd_step& o) {
  return {.lr = static_cast<T>(o.lr),
          .momentum = static_cast<T>(o.momentum),
          .fresh = static_cast<T>(1 - o.dampening),
          .decay = static_cast<T>(o.weight_decay),
          .nesterov = o.nesterov != 0,
          .first = o.first != 0};
}

// g, of a gradient that is multiplied by `scale` first.
template <typename T>
BALORA_HOST_DEVICE T sgd_gradient(const SgdFactors<T>& k, T grad, T scale, T param) {
  return grad * scale + k.decay * param;
}
// The buffer after the step; in the first, it holds nothing yet.
template <typename T>
BALORA_HOST_DEVICE T sgd_moment(const SgdFactors<T>& k, T g, T buffer) {
  return k.first ? g : k.momentum * buffer + k.fresh * g;
}
// The direction of the update, with a buffer.
template <typename T>
BALORA_HOST_DEVICE T sgd_direction(const SgdFactors<T>& k, T g, T moment) {
  return k.nesterov ? g + k.momentum * moment : moment;
}

// ---- Adafactor (Shazeer and Stern, 2018), as transformers runs it -------------------------------
// The second moment of a matrix is kept as the means of its rows and of its columns.
//   g2 = g^2 + eps
//   row = b2 * row + (1 - b2) * mean_C g2
//   column = b2 * column + (1 - b2) * mean_R g2
//   u = g / sqrt(row / mean(row)) / sqrt(column), for vectors u = g / sqrt(v)
//   u *= lr' / max(1, RMS(u) / clip),  lr' = lr * max(scale_floor, RMS(param)) if scaled
//   m = b1 * m + (1 - b1) * u
//   param = param * (1 - wd * lr') - m (or u)

// The parameter as `matrices` of (rows, columns); a vector is one row.
struct AdafactorExtents {
  int64_t matrices = 1, rows = 1, columns = 1;
  BALORA_HOST_DEVICE int64_t all_rows() const { return matrices * rows; }
};
inline AdafactorExtents adafactor_extents(const balora_adafactor_step& o) {
  AdafactorExtents e;
  if (!o.column) {
    e.columns = view_numel(*o.param);
    return e;
  }
  const int32_t last = o.param->ndim - 1;
  e.columns = o.param->shape[last];
  e.rows = o.param->shape[last - 1];
  for (int32_t d = 0; d < last - 1; ++d) e.matrices *= o.param->shape[d];
  return e;
}

// g2 of a gradient that is multiplied by `scale` first.
template <typename T>
BALORA_HOST_DEVICE double adafactor_square(T grad, T scale, double eps) {
  const double value = static_cast<double>(grad) * scale;
  return value * value + eps;
}
// A mean of the second moment after the step.
template <typename T>
BALORA_HOST_DEVICE T adafactor_blend(T old, double fresh, double beta2) {
  return static_cast<T>(beta2 * old + (1 - beta2) * fresh);
}
// 1 / sqrt(column), and sqrt(mean(row) / row).
template <typename T>
BALORA_HOST_DEVICE T adafactor_inverse(T second) {
  return static_cast<T>(1 / std::sqrt(static_cast<double>(second)));
}
template <typename T>
BALORA_HOST_DEVICE T adafactor_factor(double mean, T row) {
  return static_cast<T>(std::sqrt(mean / row));
}
// u before it is clipped.
template <typename T>
BALORA_HOST_DEVICE T adafactor_direction(T grad, T scale, T factor, T inverse) {
  return grad * scale * (factor * inverse);
}

}  // namespace balora
