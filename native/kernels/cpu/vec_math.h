// Branch-free elementary functions on f32 that the compiler vectorises inside a BALORA_SIMD row
// loop, with the double overloads of the C library beside them so that templates read the same.
// Errors against double precision, in units of the last place, stand at each function and are
// checked in vec_math_test.cc.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/simd.h"

namespace balora {

// Every step is a plain operation or a select: no library call, no conversion that NaN could make
// undefined.

BALORA_INLINE float select(bool condition, float yes, float no) {
  return condition ? yes : no;
}

// e^x, 2 ulp; subnormal results, 0 and infinity at the ends, NaN kept.
BALORA_INLINE float vexp(float x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRoundShift =
      12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  x = select(x < -104.0f, -104.0f, select(x > 89.0f, 89.0f, x));
  const float shifted = x * kLog2e + kRoundShift;
  const float n = shifted - kRoundShift;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRoundShift);
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.98756915e-4f;
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345190e-3f;
  p = p * r + 4.16657959e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 5.00000012e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, so that both stay normal where the product is subnormal or overflows.
  const int32_t half = exponent >> 1;
  const float low = std::bit_cast<float>(static_cast<int32_t>((half + 127) << 23));
  const float high = std::bit_cast<float>(static_cast<int32_t>((exponent - half + 127) << 23));
  return p * low * high;
}

// ln(x), 2 ulp; -infinity at 0, NaN below it, subnormals included.
BALORA_INLINE float vlog(float x) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f, kSqrtHalf = 0.707106781f;
  const bool subnormal = x < 1.17549435e-38f;
  const float scaled = select(subnormal, x * 8388608.0f, x);
  const int32_t bits = std::bit_cast<int32_t>(scaled);
  float mantissa = std::bit_cast<float>((bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
  float exponent = static_cast<float>((bits >> 23) - 126) - select(subnormal, 23.0f, 0.0f);
  const bool low_half = mantissa < kSqrtHalf;
  exponent -= select(low_half, 1.0f, 0.0f);
  mantissa = mantissa + select(low_half, mantissa, 0.0f) - 1.0f;
  const float square = mantissa * mantissa;
  float p = 7.0376836292e-2f;
  p = p * mantissa - 1.1514610310e-1f;
  p = p * mantissa + 1.1676998740e-1f;
  p = p * mantissa - 1.2420140846e-1f;
  p = p * mantissa + 1.4249322787e-1f;
  p = p * mantissa - 1.6668057665e-1f;
  p = p * mantissa + 2.0000714765e-1f;
  p = p * mantissa - 2.4999993993e-1f;
  p = p * mantissa + 3.3333331174e-1f;
  p = p * mantissa * square + exponent * kLn2Low - 0.5f * square;
  const float result = mantissa + p + exponent * kLn2High;
  const float infinity = std::bit_cast<float>(0x7f800000);
  const float nan = std::bit_cast<float>(0x7fc00000);
  const float finite = select(x == infinity, infinity, select(x == 0.0f, -infinity, result));
  return select(x >= 0.0f, finite, nan);
}

// 3 ulp.
BALORA_INLINE float vtanh(float x) {
  const float magnitude = select(x < 0.0f, -x, x);
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float small = p * square * x + x;
  const float large = 1.0f - 2.0f / (vexp(2.0f * magnitude) + 1.0f);
  return select(magnitude < 0.625f, small, select(x < 0.0f, -large, large));
}

// erf: fitted to double precision values of erf(x)/x below 0.92 and of ln(1 - erf(x)) above; 2 ulp.
BALORA_INLINE float verf(float x) {
  const float magnitude = select(x < 0.0f, -x, x), square = x * x;
  float low = -5.96761703e-4f;
  low = low * square + 4.99119423e-3f;
  low = low * square - 2.67681349e-2f;
  low = low * square + 1.12819925e-1f;
  low = low * square - 3.76125336e-1f;
  low = low * square + 1.28379166e-1f;
  low = low * x + x;
  const float t = select(magnitude > 4.0f, 4.0f, magnitude);  // erf(4) is 1 in f32
  float high = -1.72853470e-5f * t + 3.83197126e-4f;
  high = high * t - 3.88396438e-3f;
  high = high * t + 2.42546219e-2f;
  high = high * t - 1.06777877e-1f;
  high = high * t - 6.34846687e-1f;
  high = high * t - 1.28717512e-1f;
  high = high * t - t;
  high = 1.0f - vexp(high);
  const float result = select(magnitude > 0.921875f, select(x < 0.0f, -high, high), low);
  return select(x == x, result, x);
}

BALORA_INLINE double vexp(double x) {
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

template <typename A>
BALORA_INLINE A vsigmoid(A x) {
  return A(1) / (A(1) + vexp(-x));
}

}  // namespace balora
