// softmax, logSoftmax and cross-entropy against their definitions in double, and at vocabulary
// size, where an f32 running sum would be 1e-5 off.
#include <doctest/doctest.h>

#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

// ln sum exp of row n in long double, straight from the definition.
template <typename T>
double log_sum_exp(const Array<T>& x, int64_t n, int64_t size) {
  long double highest = -INFINITY, sum = 0;
  for (int64_t i = 0; i < size; ++i) highest = std::max<long double>(highest, x[n * size + i]);
  for (int64_t i = 0; i < size; ++i) sum += std::exp(x[n * size + i] - highest);
  return static_cast<double>(highest + std::log(sum));
}

template <typename T>
double tolerance() {
  return epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-14 : 2e-6);
}

template <typename T>
void check_softmax(int64_t rows, int64_t size, bool logarithm) {
  CAPTURE(size);
  CAPTURE(logarithm);
  std::mt19937 random(17);
  TestContext ctx;
  Array<T> x({rows, size}, random, 8), dy({rows, size}, random), y({rows, size}), dx({rows, size});
  Array<Acc<T>> lse({rows});
  View vx = x.view(), vdy = dy.view(), vy = y.view(), vdx = dx.view(), vl = lse.view();
  REQUIRE(softmax_forward_kernel(ctx, {.x = &vx, .y = &vy, .lse = &vl, .logarithm = logarithm}) ==
          0);
  REQUIRE(softmax_backward_kernel(
              ctx, {.dy = &vdy, .x = &vx, .lse = &vl, .dx = &vdx, .logarithm = logarithm}) == 0);
  std::vector<double> want_y, want_dx;
  for (int64_t n = 0; n < rows; ++n) {
    const double total = log_sum_exp(x, n, size);
    double sum = 0, dot = 0;
    for (int64_t i = 0; i < size; ++i) {
      sum += dy[n * size + i];
      dot += dy[n * size + i] * std::exp(x[n * size + i] - total);
    }
    for (int64_t i = 0; i < size; ++i) {
      const double log_p = x[n * size + i] - total, p = std::exp(log_p), g = dy[n * size + i];
      want_y.push_back(logarithm ? log_p : p);
      want_dx.push_back(logarithm ? g - p * sum : p * (g - dot));
    }
  }
  check_close(y, want_y, tolerance<T>());
  check_close(dx, want_dx, tolerance<T>());
}

TEST_CASE_TEMPLATE("softmax and log_softmax equal their definitions", T, float, bf16, f16, double) {
  for (const bool logarithm : {false, true}) {
    for (const int64_t size : {1, 31, 33, 123, 1000}) check_softmax<T>(5, size, logarithm);
  }
}

TEST_CASE("log_softmax over a 49k vocabulary is right to f32's last places") {
  std::mt19937 random(19);
  TestContext ctx;
  const int64_t size = 49152;
  Array<float> x({2, size}, random, 2), y({2, size}), lse({2});
  View vx = x.view(), vy = y.view(), vl = lse.view();
  REQUIRE(softmax_forward_kernel(ctx, {.x = &vx, .y = &vy, .lse = &vl, .logarithm = 1}) == 0);
  for (int64_t n = 0; n < 2; ++n) {
    const double want = log_sum_exp(x, n, size);
    double worst = 0;
    for (int64_t i = 0; i < size; ++i) {
      worst = std::max(worst, std::abs(y[n * size + i] - (x[n * size + i] - want)));
    }
    CHECK(worst < 1.5e-6);  // values near 11: one place is 9.5e-7
  }
}

template <typename T>
void check_cross_entropy(int64_t rows, int64_t classes, int32_t reduction) {
  CAPTURE(classes);
  CAPTURE(reduction);
  std::mt19937 random(23);
  TestContext ctx;
  Array<T> z({rows, classes}, random, 5), dz({rows, classes});
  Array<int32_t> targets({rows});
  int64_t counted = 0;
  for (int64_t n = 0; n < rows; ++n) {
    targets.data()[n] = n % 3 == 1 ? -100 : static_cast<int32_t>(n * 5 % classes);
    counted += n % 3 != 1;
  }
  const int64_t outputs = reduction == 0 ? rows : 1;
  Array<Acc<T>> loss({outputs}), lse({rows}), dloss({outputs}, random);
  View vz = z.view(), vt = targets.view(), vl = loss.view(), vs = lse.view();
  View vdl = dloss.view(), vdz = dz.view();
  REQUIRE(cross_entropy_forward_kernel(
              ctx, {.logits = &vz,
                    .targets = &vt,
                    .loss = &vl,
                    .lse = &vs,
                    .reduction = static_cast<balora_reduction>(reduction)}) == 0);
  REQUIRE(cross_entropy_backward_kernel(
              ctx, {.dloss = &vdl,
                    .logits = &vz,
                    .targets = &vt,
                    .lse = &vs,
                    .dlogits = &vdz,
                    .reduction = static_cast<balora_reduction>(reduction)}) == 0);
  std::vector<double> want(static_cast<size_t>(outputs), 0), want_dz;
  const double scale = reduction == 2 ? 1 / static_cast<double>(counted) : 1;
  for (int64_t n = 0; n < rows; ++n) {
    const int32_t target = targets.data()[n];
    const double total = log_sum_exp(z, n, classes);
    const double slope = dloss[reduction == 0 ? n : 0] * scale;
    if (target >= 0) {
      want[reduction == 0 ? static_cast<size_t>(n) : 0] +=
          scale * (total - z[n * classes + target]);
    }
    for (int64_t v = 0; v < classes; ++v) {
      const double p = std::exp(z[n * classes + v] - total);
      want_dz.push_back(target < 0 ? 0 : slope * (p - (v == target)));
    }
  }
  check_close(loss, want, std::is_same_v<T, double> ? 1e-14 : 1e-6);
  check_close(dz, want_dz, tolerance<T>());
}

TEST_CASE_TEMPLATE("cross_entropy equals its definition", T, float, bf16, f16, double) {
  for (const int32_t reduction : {0, 1, 2}) {
    for (const int64_t classes : {1, 31, 33, 123}) check_cross_entropy<T>(13, classes, reduction);
  }
}

TEST_CASE("cross_entropy refuses a target that is no class, and a mean of nothing is NaN") {
  TestContext ctx;
  std::mt19937 random(2);
  Array<float> z({2, 5}, random), loss({1}), lse({2});
  Array<int32_t> outside({2}, std::vector<double>{0, 5}),
      none({2}, std::vector<double>{-100, -100});
  View vz = z.view(), vo = outside.view(), vn = none.view(), vl = loss.view(), vs = lse.view();
  CHECK_THROWS_WITH_AS(
      cross_entropy_forward_kernel(ctx, {.logits = &vz,
                                         .targets = &vo,
                                         .loss = &vl,
                                         .lse = &vs,
                                         .reduction = static_cast<balora_reduction>(1)}),
      "target 5 of row 1 is not a class id below 5 (-100 marks a "
      "row to ignore)",
      ArgumentError);
  REQUIRE(cross_entropy_forward_kernel(ctx, {.logits = &vz,
                                             .targets = &vn,
                                             .loss = &vl,
                                             .lse = &vs,
                                             .reduction = static_cast<balora_reduction>(2)}) == 0);
  CHECK(std::isnan(loss[0]));
}

}  // namespace
