// Branch-free elementary functions on f32 that the compiler vectorises inside a row loop, with the
// C library's on double beside them so that templates read the same. Polynomials are minimax fits
// (iteratively reweighted least squares over 2000 Chebyshev nodes in high precision, coefficients
// rounded to f32); the bounds in ulp are measured by vec_math_test.cc over the whole range, with
// and without fused multiply-add. Subnormals, infinities and NaN behave as in the C library, where
// no comment says otherwise.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/runtime/inline.h"

namespace balora {

namespace vec {
constexpr float kLog2e = 1.44269504f;
constexpr float kLn2High = 0.693359375f;  // 9 bits: n * kLn2High is exact for the n that occur
constexpr float kLn2Low = -2.12194440e-4f;
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

BALORA_INLINE float pow2(int32_t n) {  // n in [-126, 127]
  return std::bit_cast<float>(static_cast<int32_t>((n + 127) * (1 << 23)));
}
BALORA_INLINE float with_sign(float magnitude, float sign) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(magnitude) & 0x7fffffffu) |
                              (std::bit_cast<uint32_t>(sign) & 0x80000000u));
}
BALORA_INLINE float absolute(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7fffffffu);
}
BALORA_INLINE float exp_near_zero(float r) {  // e^r for |r| <= ln(2)/2
  float p = 1.979029767e-4f;
  p = p * r + 1.394470339e-3f;
  p = p * r + 8.333497681e-3f;
  p = p * r + 4.166629538e-2f;
  p = p * r + 1.666666567e-1f;
  p = p * r + 0.5f;
  return (p * r) * r + r + 1.0f;
}

// e^x = 2^n * fraction, with n in the low bits of `shifted` (kRound).
struct ExpParts {
  float shifted, fraction;
};
BALORA_INLINE ExpParts exp_parts(float x) {
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  return {shifted, exp_near_zero((x - n * kLn2High) - n * kLn2Low)};
}
}  // namespace vec

// e^x, 1.5 ulp. The argument is clamped where the result is 0 or infinity anyway; the comparisons
// keep a NaN.
BALORA_INLINE float vexp(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const auto [shifted, p] = vec::exp_parts(x);
  // 2^n as two factors: each is a normal number where the result is subnormal or overflows. For a
  // NaN the exponent bits are garbage in range, and p is NaN.
  const int32_t exponent =
      (std::bit_cast<int32_t>(shifted) & 0x1ff) - ((std::bit_cast<int32_t>(shifted) & 0x100) << 1);
  const int32_t half = exponent >> 1;
  return p * vec::pow2(half) * vec::pow2(exponent - half);
}

// Natural logarithm, 1.5 ulp.
BALORA_INLINE float vlog(float x) {
  const bool subnormal = x < std::numeric_limits<float>::min();
  const float scaled = subnormal ? x * 0x1p23f : x;
  // The mantissa in [sqrt(1/2), sqrt(2)): subtracting sqrt(1/2)'s bits first moves the cut from a
  // power of 2 to there.
  constexpr int32_t kRootHalf = 0x3f3504f3;
  const int32_t bits = std::bit_cast<int32_t>(scaled) - kRootHalf;
  const float exponent = static_cast<float>((bits >> 23) - (subnormal ? 23 : 0));
  const float f = std::bit_cast<float>((bits & 0x007fffff) + kRootHalf) - 1.0f;
  float p = 6.746640801e-2f;
  p = p * f - 1.167565212e-1f;
  p = p * f + 1.188816205e-1f;
  p = p * f - 1.240558922e-1f;
  p = p * f + 1.421955228e-1f;
  p = p * f - 1.666799635e-1f;
  p = p * f + 2.000211924e-1f;
  p = p * f - 2.500000894e-1f;
  p = p * f + 3.333331347e-1f;
  const float square = f * f;
  const float tail = p * f * square + exponent * vec::kLn2Low - 0.5f * square;
  float result = f + tail + exponent * vec::kLn2High;
  result = x == vec::kInf ? vec::kInf : result;
  result = x == 0.0f ? -vec::kInf : result;
  return x >= 0.0f ? result : vec::kNan;
}

// tanh, 2 ulp.
BALORA_INLINE float vtanh(float x) {
  const float magnitude = vec::absolute(x), square = x * x;
  float p = -5.666977260e-3f;
  p = p * square + 2.060617693e-2f;
  p = p * square - 5.373000726e-2f;
  p = p * square + 1.333133131e-1f;
  p = p * square - 3.333327770e-1f;
  const float small = vec::with_sign(p * square * x + x, x);  // a zero keeps its sign
  const float large = vec::with_sign(1.0f - 2.0f / (vexp(2.0f * magnitude) + 1.0f), x);
  return magnitude < 0.625f ? small : (x == x ? large : x);
}

// erf, 2 ulp: x + x * P(x^2) near zero, 1 - e^-(t + t Q(t)) beyond; from 4 on it is 1 in f32.
BALORA_INLINE float verf(float x) {
  const float magnitude = vec::absolute(x), square = x * x;
  float p = 8.185106708e-5f;
  p = p * square - 8.097707178e-4f;
  p = p * square + 5.196952727e-3f;
  p = p * square - 2.685770579e-2f;
  p = p * square + 1.128366366e-1f;
  p = p * square - 3.761263192e-1f;
  p = p * square + 1.283791661e-1f;
  const float small = p * x + x;
  const float t = magnitude > 4.0f ? 4.0f : magnitude;
  float q = 1.043293651e-5f;
  q = q * t - 3.148564138e-4f;
  q = q * t + 3.610335523e-3f;
  q = q * t - 2.369455248e-2f;
  q = q * t + 1.061590314e-1f;
  q = q * t + 6.351980567e-1f;
  q = q * t + 1.286370754e-1f;
  const float large = vec::with_sign(1.0f - vexp(-(q * t + t)), x);
  return magnitude < 0.921875f ? small : (x == x ? large : x);
}

// e^x, 1.5 ulp, for x <= 0 where the results are summed up: 0 below -60, which the sums cannot see
// anyway. So no result is a subnormal number (products with those run a hundred times slower on
// most CPUs), and 2^n is one factor. A NaN stays one.
namespace vec {
constexpr float kVanishing = -60.0f;
}
BALORA_INLINE float vexp_or_zero(float x) {
  const float bounded = x < vec::kVanishing ? vec::kVanishing : x;
  const auto [shifted, p] = vec::exp_parts(bounded);
  // The shift leaves of kRound's bits nothing, n's in the exponent.
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < vec::kVanishing ? 0.0f : p * power;
}

BALORA_INLINE double vexp(double x) {
  return std::exp(x);
}
BALORA_INLINE double vexp_or_zero(double x) {
  return std::exp(x);
}
BALORA_INLINE double vlog(double x) {
  return std::log(x);
}
BALORA_INLINE double vtanh(double x) {
  return std::tanh(x);
}
BALORA_INLINE double verf(double x) {
  return std::erf(x);
}

// 1 / (1 + e^-x), 2.5 ulp.
template <typename A>
BALORA_INLINE A vsigmoid(A x) {
  return A(1) / (A(1) + vexp(-x));
}

// ln(1 + e^x), exact in both tails: max(x, 0) + log1p(e^-|x|), where log1p(u) = ln(w) - ((w - 1) -
// u) / w, w = 1 + u, gives back the digits that the addition lost.
template <typename A>
BALORA_INLINE A vsoftplus(A x) {
  const A u = vexp(x < A(0) ? x : -x), w = A(1) + u;
  return (x > A(0) ? x : A(0)) + (vlog(w) - ((w - A(1)) - u) / w);
}

// These functions under the names that the formulas of kernels/shared call.
struct VectorMath {
  template <typename A>
  static BALORA_INLINE A exp(A x) {
    return vexp(x);
  }
  template <typename A>
  static BALORA_INLINE A log(A x) {
    return vlog(x);
  }
  template <typename A>
  static BALORA_INLINE A tanh(A x) {
    return vtanh(x);
  }
  template <typename A>
  static BALORA_INLINE A erf(A x) {
    return verf(x);
  }
  template <typename A>
  static BALORA_INLINE A sigmoid(A x) {
    return vsigmoid(x);
  }
  template <typename A>
  static BALORA_INLINE A softplus(A x) {
    return vsoftplus(x);
  }
};

}  // namespace balora
