// Gated activations against their definitions in double, with rows taken from the halves of one
// fused array.
#include <doctest/doctest.h>

#include <numbers>

#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

double activation(double x, int32_t kind) {
  if (kind == 0) return x / (1 + std::exp(-x));
  if (kind == 1) return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2));
  const double inner = std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1 + std::tanh(inner));
}

// Central difference: good to about 1e-9 here, far below any tolerance but f64's.
double slope(double x, int32_t kind) {
  const double h = 1e-5;
  return (activation(x + h, kind) - activation(x - h, kind)) / (2 * h);
}

template <typename T>
void check_gated(int64_t rows, int64_t width, int32_t kind) {
  CAPTURE(width);
  CAPTURE(kind);
  std::mt19937 random(11);
  TestContext ctx;
  Array<T> fused({rows, 2 * width}, random, 6), dy({rows, width}, random), y({rows, width});
  Array<T> dfused({rows, 2 * width});
  const auto half = [&](Array<T>& a, int64_t which) {
    View v = a.view();
    v.data = a.data() + which * width;
    v.shape[1] = width;
    return v;
  };
  View gate = half(fused, 0), up = half(fused, 1), dgate = half(dfused, 0), dup = half(dfused, 1);
  View vy = y.view(), vdy = dy.view();
  REQUIRE(gated_forward_kernel(ctx, {.gate = &gate,
                                     .up = &up,
                                     .y = &vy,
                                     .activation = static_cast<balora_activation>(kind)}) == 0);
  REQUIRE(gated_backward_kernel(ctx, {.dy = &vdy,
                                      .gate = &gate,
                                      .up = &up,
                                      .dgate = &dgate,
                                      .dup = &dup,
                                      .activation = static_cast<balora_activation>(kind)}) == 0);
  std::vector<double> want_y, want_d;
  for (int64_t n = 0; n < rows; ++n) {
    const auto g = [&](int64_t f) { return fused[n * 2 * width + f]; };
    for (int64_t f = 0; f < width; ++f) want_y.push_back(activation(g(f), kind) * g(width + f));
    for (int64_t f = 0; f < width; ++f) {
      want_d.push_back(dy[n * width + f] * g(width + f) * slope(g(f), kind));
    }
    for (int64_t f = 0; f < width; ++f) {
      want_d.push_back(dy[n * width + f] * activation(g(f), kind));
    }
  }
  const double tolerance = epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-9 : 2e-6);
  check_close(y, want_y, tolerance);
  check_close(dfused, want_d, tolerance);
}

TEST_CASE_TEMPLATE("gated activations equal their definitions", T, float, bf16, f16, double) {
  for (const int32_t kind : {0, 1, 2}) {
    for (const int64_t width : {1, 31, 33, 123}) check_gated<T>(9, width, kind);
  }
}

TEST_CASE("gated activations stay finite far from zero") {
  TestContext ctx;
  Array<float> gate({1, 4}, std::vector<double>{-200, 200, -1e30, 1e30});
  Array<float> up({1, 4}, std::vector<double>{1, 1, 1, 1}), dy({1, 4}, std::vector<double>(4, 1.0));
  for (const int32_t kind : {0, 1, 2}) {
    CAPTURE(kind);
    Array<float> y({1, 4}), dgate({1, 4}), dup({1, 4});
    View g = gate.view(), u = up.view(), vy = y.view(), vdy = dy.view();
    View dg = dgate.view(), du = dup.view();
    REQUIRE(gated_forward_kernel(ctx, {.gate = &g,
                                       .up = &u,
                                       .y = &vy,
                                       .activation = static_cast<balora_activation>(kind)}) == 0);
    REQUIRE(gated_backward_kernel(ctx, {.dy = &vdy,
                                        .gate = &g,
                                        .up = &u,
                                        .dgate = &dg,
                                        .dup = &du,
                                        .activation = static_cast<balora_activation>(kind)}) == 0);
    check_close(y, {0, 200, 0, 1e30}, 1e-6);
    if (kind != 2) check_close(dgate, {0, 1, 0, 1}, 1e-6);
    check_close(dup, {0, 200, 0, 1e30}, 1e-6);
  }
}

}  // namespace
