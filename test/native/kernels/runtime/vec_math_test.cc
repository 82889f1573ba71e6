// The vectorisable functions against the C library in double, in units of the last place of the f32
// result. Every 997th float of the interval is tried (so small magnitudes count as much as large
// ones), both as compiled for the baseline and through a dispatched row loop, which may fuse
// multiply and add.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/cpu/runtime/x86/lanes.h"
#include "platform/cpu.h"

namespace {

using namespace balora;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

#define ROW(name)                                                      \
  BALORA_INLINE void name##_loop(const float* x, float* y, int n) {    \
    _Pragma("omp simd") for (int i = 0; i < n; ++i) y[i] = name(x[i]); \
  }                                                                    \
  void name##_row(const float* x, float* y, int n) {                   \
    at_level<&name##_loop>(x, y, n);                                   \
  }
ROW(vexp)
ROW(vexp_or_zero)
ROW(vlog)
ROW(vtanh)
ROW(verf)
ROW(vsigmoid)
ROW(vsoftplus)
#undef ROW

// Floats of [low, high], 0 < low, and their negatives where asked for.
std::vector<float> floats(float low, float high, bool both_signs = false) {
  std::vector<float> values;
  for (uint32_t bits = std::bit_cast<uint32_t>(low); bits <= std::bit_cast<uint32_t>(high);
       bits += 997) {
    values.push_back(std::bit_cast<float>(bits));
    if (both_signs) values.push_back(-values.back());
  }
  return values;
}

double ulps(float got, double want) {
  const float rounded = std::abs(static_cast<float>(want));
  if (std::isinf(rounded)) return got == static_cast<float>(want) ? 0 : 1e9;
  return std::abs(got - want) / (static_cast<double>(std::nextafter(rounded, kInfinity)) - rounded);
}

template <typename Fast, typename Row, typename Exact>
double worst(const std::vector<float>& x, Fast fast, Row row, Exact exact) {
  std::vector<float> y(x.size());
  row(x.data(), y.data(), static_cast<int>(x.size()));
  double error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = exact(static_cast<double>(x[i]));
    error = std::max({error, ulps(y[i], want), ulps(fast(x[i]), want)});
  }
  return error;
}

#define WORST(values, name, exact) \
  worst(values, [](float x) { return name(x); }, name##_row, [](double x) { return exact; })

TEST_CASE("vexp: ulps, and exact at its ends") {
  CHECK(WORST(floats(1e-30f, 87.0f, true), vexp, std::exp(x)) < 1.5);
  CHECK(WORST(floats(87.0f, 120.0f, true), vexp, std::exp(x)) < 1.5);
  CHECK(vexp(0.0f) == 1.0f);
  CHECK(vexp(-kInfinity) == 0.0f);
  CHECK(vexp(kInfinity) == kInfinity);
  CHECK(std::isnan(vexp(kNan)));
}

TEST_CASE("vexp_or_zero: ulps down to -60, zero below") {
  std::vector<float> values = floats(1e-30f, 60.0f);
  for (float& value : values) value = -value;
  CHECK(WORST(values, vexp_or_zero, std::exp(x)) < 1.5);
  CHECK(vexp_or_zero(0.0f) == 1.0f);
  CHECK(vexp_or_zero(std::nextafter(-60.0f, -61.0f)) == 0.0f);
  CHECK(vexp_or_zero(-kInfinity) == 0.0f);
  CHECK(std::isnan(vexp_or_zero(kNan)));
  CHECK(std::isnan(vexp_or_zero(std::bit_cast<float>(0x7fc00123u))));  // bits where n's would be
}

TEST_CASE("vlog: ulps over normals and subnormals, and its ends") {
  CHECK(WORST(floats(1e-45f, 1e-36f), vlog, std::log(x)) < 1.5);
  CHECK(WORST(floats(1e-36f, 3.4e38f), vlog, std::log(x)) < 1.5);
  CHECK(WORST(floats(0.9f, 1.1f), vlog, std::log(x)) < 1.5);
  CHECK(vlog(1.0f) == 0.0f);
  CHECK(vlog(0.0f) == -kInfinity);
  CHECK(vlog(kInfinity) == kInfinity);
  CHECK(std::isnan(vlog(-1.0f)));
  CHECK(std::isnan(vlog(-kInfinity)));
  CHECK(std::isnan(vlog(kNan)));
}

TEST_CASE("vtanh: ulps, saturation, signed zero") {
  CHECK(WORST(floats(1e-30f, 20.0f, true), vtanh, std::tanh(x)) < 2);
  CHECK(vtanh(kInfinity) == 1.0f);
  CHECK(vtanh(-kInfinity) == -1.0f);
  CHECK(std::signbit(vtanh(-0.0f)));
  CHECK(std::isnan(vtanh(kNan)));
}

TEST_CASE("verf: ulps, saturation, signed zero") {
  CHECK(WORST(floats(1e-30f, 6.0f, true), verf, std::erf(x)) < 2);
  CHECK(verf(kInfinity) == 1.0f);
  CHECK(verf(-kInfinity) == -1.0f);
  CHECK(std::signbit(verf(-0.0f)));
  CHECK(std::isnan(verf(kNan)));
}

TEST_CASE("vsigmoid and vsoftplus: ulps and both tails") {
  CHECK(WORST(floats(1e-30f, 85.0f, true), vsigmoid, 1 / (1 + std::exp(-x))) < 2.5);
  CHECK(WORST(floats(1e-30f, 85.0f, true), vsoftplus, std::log1p(std::exp(x))) < 2.5);
  CHECK(vsigmoid(-kInfinity) == 0.0f);
  CHECK(vsigmoid(kInfinity) == 1.0f);
  CHECK(vsoftplus(-kInfinity) == 0.0f);
  CHECK(vsoftplus(1000.0f) == 1000.0f);
  CHECK(std::isnan(vsigmoid(kNan)));
  CHECK(std::isnan(vsoftplus(kNan)));
}

#if defined(__x86_64__)
AVX512_TARGET void exp2_of(const float* x, float* y) {
  _mm512_storeu_ps(y, lanes::exp2(_mm512_loadu_ps(x)));
}
AVX512_TARGET void exp_of_difference(const float* x, const float* from, float* y) {
  _mm512_storeu_ps(y, lanes::exp_difference(_mm512_loadu_ps(x), _mm512_loadu_ps(from)));
}

TEST_CASE("lanes: exponentials, ulps and ends, 1 of 0") {
  if (!platform::cpu().uses(platform::kAvx512)) {
    MESSAGE("not run: this process has no AVX-512");
    return;
  }
  float y[16];
  std::vector<float> x = floats(1e-30f, 125.0f, true);
  x.resize(x.size() / 16 * 16);
  double error = 0;
  for (size_t i = 0; i < x.size(); i += 16) {
    exp2_of(&x[i], y);
    for (size_t j = 0; j < 16; ++j) {
      error = std::max(error, ulps(y[j], std::exp2(static_cast<double>(x[i + j]))));
    }
  }
  CHECK(error < 3);
  const float ends[16] = {0.0f, -0.0f, -kInfinity, -3.4e38f, -200.0f, kInfinity, kNan, 1.0f, -1.0f};
  exp2_of(ends, y);
  CHECK(y[0] == 1.0f);
  CHECK(y[1] == 1.0f);
  CHECK(y[2] == 0.0f);
  CHECK(y[3] == 0.0f);
  CHECK(y[4] == 0.0f);
  CHECK(y[5] == kInfinity);
  CHECK(std::isnan(y[6]));
  CHECK(y[7] == 2.0f);
  CHECK(y[8] == 0.5f);
  const float large[16] = {3e38f, -3e38f, 1e30f, 20.0f}, from[16] = {3e38f, -3e38f, 3e38f, 20.5f};
  exp_of_difference(large, from, y);
  CHECK(y[0] == 1.0f);
  CHECK(y[1] == 1.0f);
  CHECK(y[2] == 0.0f);
  CHECK(ulps(y[3], std::exp(-0.5)) < 3);
}
#endif

}  // namespace
