// The vectorisable functions against the C library in double, in units of the last place of the f32
// result.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/vec_math.h"

namespace {

using namespace balora;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Largest error over `count` points of [low, high], in ulps of the result.
template <typename Fast, typename Exact>
double worst_ulp(float low, float high, int count, Fast fast, Exact exact) {
  double worst = 0;
  for (int i = 0; i < count; ++i) {
    const float x =
        low + (high - low) * (static_cast<float>(i) + 0.37f) / static_cast<float>(count);
    const double want = exact(static_cast<double>(x));
    const float rounded = static_cast<float>(want);
    const double ulp = std::nextafter(std::abs(rounded), kInfinity) - std::abs(rounded);
    worst = std::max(worst, std::abs(fast(x) - want) / ulp);
  }
  return worst;
}

TEST_CASE("vexp is within 2 ulp and exact at its ends") {
  const auto fast = [](float x) { return vexp(x); };
  const auto exact = [](double x) { return std::exp(x); };
  CHECK(worst_ulp(-1, 1, 100000, fast, exact) < 2);
  CHECK(worst_ulp(-87, 88.5f, 100000, fast, exact) < 2);
  CHECK(worst_ulp(-103, -87, 10000, fast, exact) < 2);
  CHECK(vexp(0.0f) == 1.0f);
  CHECK(vexp(-kInfinity) == 0.0f);
  CHECK(vexp(-200.0f) == 0.0f);
  CHECK(vexp(kInfinity) == kInfinity);
  CHECK(vexp(89.0f) == kInfinity);
  CHECK(std::isnan(vexp(std::nanf(""))));
}

TEST_CASE("vlog is within 2 ulp over normals and subnormals") {
  const auto fast = [](float x) { return vlog(x); };
  const auto exact = [](double x) { return std::log(x); };
  CHECK(worst_ulp(0.01f, 0.9f, 100000, fast, exact) < 2);
  CHECK(worst_ulp(1.1f, 1e6f, 100000, fast, exact) < 2);
  CHECK(worst_ulp(1e-44f, 1e-38f, 1000, fast, exact) < 2);
  CHECK(vlog(1.0f) == 0.0f);
  CHECK(vlog(0.0f) == -kInfinity);
  CHECK(vlog(kInfinity) == kInfinity);
  CHECK(std::isnan(vlog(-1.0f)));
  CHECK(std::isnan(vlog(std::nanf(""))));
}

TEST_CASE("vtanh is within 3 ulp and saturates") {
  const auto fast = [](float x) { return vtanh(x); };
  const auto exact = [](double x) { return std::tanh(x); };
  CHECK(worst_ulp(-12, 12, 100000, fast, exact) < 3);
  CHECK(worst_ulp(-0.7f, 0.7f, 100000, fast, exact) < 3);
  CHECK(vtanh(kInfinity) == 1.0f);
  CHECK(vtanh(-kInfinity) == -1.0f);
  CHECK(std::isnan(vtanh(std::nanf(""))));
}

TEST_CASE("verf is within 2 ulp and saturates") {
  const auto fast = [](float x) { return verf(x); };
  const auto exact = [](double x) { return std::erf(x); };
  CHECK(worst_ulp(-5, 5, 100000, fast, exact) < 2);
  CHECK(worst_ulp(-0.95f, 0.95f, 100000, fast, exact) < 2);
  CHECK(verf(kInfinity) == 1.0f);
  CHECK(verf(-kInfinity) == -1.0f);
  CHECK(std::isnan(verf(std::nanf(""))));
}

}  // namespace
