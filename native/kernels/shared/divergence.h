// KL(q || p) of two softmaxes without the cancellation of its usual form, a difference of
// logarithms of sums that are nearly equal where the distributions are close, as they are at a high
// temperature. For logits z of p and y of q, about any centre c of their differences:
//   w = (y - z - c) / T
//   KL = ln E_q[e^-w] + E_q[w],  E_q[e^-w] - 1 = E_q[r] - E_q[w],  r = e^-w - 1 + w >= 0
//   q - p = -q (e^u - 1),  u = ln p - ln q = -w - ln E_q[e^-w]
// r and e^u - 1 come from their series where they are small. So equal logits give exactly 0. KL is
// near half the variance of w under q, so the error is one of y - z as long as c is near their mean
// under q, measured by their spread, whatever T is. With q shifted by the largest of z and c, e^-w
// turns an exponential of q into that of p: e^((y - (max z + c)) / T) e^-w = e^((z - max z) / T).
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/shared/host_device.h"

namespace balora {

// Up to here series are taken: f32 then has e^x - 1 - x to 2e-5 on either side, f64 to 1e-14.
constexpr double kSeriesRange = 0.125;

// The centre c is a mean under q over about so many tokens, at equal distances.
constexpr int64_t kCentreSamples = 256;
// It stays so near that of the largest logits, in T, that q does not overflow beside its shift.
constexpr double kCentreRange = 8;

// The distance of the samples in a row of n > 0 logits.
BALORA_HOST_DEVICE int64_t centre_step(int64_t n) {
  return n > kCentreSamples ? n / kCentreSamples : 1;
}

// c - (max y - max z), out of sums over the samples: of q = e^((y - max y) scale), and of q times
// the distance of y - z from max y - max z. A sample stands for `step` tokens; beside them is one
// at the largest of both, which decides where q is concentrated.
template <typename A>
BALORA_HOST_DEVICE A centre_offset(A weight, A value, A step, A scale) {
  const A offset = step * value / (A(1) + step * weight), most = A(kCentreRange) / scale;
  return offset > most ? most : offset < -most ? -most : offset;
}

// (e^x - 1 - x) / x^2 for |x| < kSeriesRange.
BALORA_HOST_DEVICE float exp_series(float x) {
  return 0.5f + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120)));
}
BALORA_HOST_DEVICE double exp_series(double x) {
  double p = 1.0 / 3628800;
  p = p * x + 1.0 / 362880;
  p = p * x + 1.0 / 40320;
  p = p * x + 1.0 / 5040;
  p = p * x + 1.0 / 720;
  p = p * x + 1.0 / 120;
  p = p * x + 1.0 / 24;
  p = p * x + 1.0 / 6;
  return p * x + 0.5;
}

template <typename A>
BALORA_HOST_DEVICE bool in_series_range(A x) {
  return x < A(kSeriesRange) && x > A(-kSeriesRange);
}

// q (e^-w - 1 + w), for x = q e^-w.
template <typename A>
BALORA_HOST_DEVICE A divergence_rest(A q, A x, A w) {
  const A series = q * (w * w * exp_series(-w)), whole = (x - q) + q * w;
  return in_series_range(w) ? series : whole;
}

// q (e^u - 1), for x = q e^u.
template <typename A>
BALORA_HOST_DEVICE A exp_difference(A q, A x, A u) {
  const A series = q * (u + u * u * exp_series(u)), whole = x - q;
  return in_series_range(u) ? series : whole;
}

// Sums over the vocabulary: of x = e^((z - shift) / T), of q = e^((y - shift of y) / T), of q w
// and of q (e^-w - 1 + w), with the difference of the shifts as c.
struct DivergenceSums {
  double student = 0, teacher = 0, gap = 0, rest = 0;

  // ln E_q[e^-w]. Where that is not near 0, the difference of two logarithms loses little.
  BALORA_HOST_DEVICE double log_ratio() const {
    const double less_one = (rest - gap) / teacher;
    return less_one > -0.5 && less_one < 0.5 ? std::log1p(less_one)
                                             : std::log(student) - std::log(teacher);
  }
  BALORA_HOST_DEVICE double divergence() const {
    const double kl = log_ratio() + gap / teacher;
    return kl < 0 ? 0 : kl;  // by rounding; a NaN stays
  }
};

}  // namespace balora
