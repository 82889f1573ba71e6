// The sum of second moments of scaled rows against plain loops in f64: every dtype, odd sizes, runs
// of scales that are shorter and longer than a block, and the same bits on any number of threads.
#include "kernels/cpu/linalg/scaled_gram.h"

#include "support/kernel_test.h"

using namespace balora;
using namespace balora::test;

namespace {

// Rows 0..4 have one scale, 5 another, the rest one that depends on the hundreds.
std::vector<float> scales_of(int64_t n) {
  std::vector<float> scale(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    scale[static_cast<size_t>(i)] = i < 5    ? 0.3f
                                    : i == 5 ? 7.1f
                                             : 0.11f * static_cast<float>(1 + i / 300);
  }
  return scale;
}

// The largest error, as a part of the terms' magnitudes.
template <typename T>
double error_of(const Array<T>& a, const std::vector<float>& scale, int64_t c,
                const std::vector<double>& g) {
  const auto n = static_cast<int64_t>(scale.size());
  double worst = 0;
  for (int64_t i = 0; i < c; ++i) {
    for (int64_t j = 0; j < c; ++j) {
      double sum = i == j ? 2.0 : 0.5, size = sum;
      for (int64_t row = 0; row < n; ++row) {
        const double s = scale[static_cast<size_t>(row)];
        const double term = s * s * a[row * c + i] * a[row * c + j];
        sum += term;
        size += std::abs(term);
      }
      worst = std::max(worst, std::abs(sum - g[static_cast<size_t>(i * c + j)]) / size);
      REQUIRE(g[static_cast<size_t>(i * c + j)] == g[static_cast<size_t>(j * c + i)]);
    }
  }
  return worst;
}

template <typename T>
std::vector<double> computed(Array<T>& a, const std::vector<float>& scale, int64_t c, int threads) {
  TestContext ctx(threads);
  std::vector<double> g(static_cast<size_t>(c * c));
  for (int64_t i = 0; i < c * c; ++i) g[static_cast<size_t>(i)] = (i / c == i % c) ? 2.0 : 0.5;
  add_scaled_gram(ctx, a.view(), scale.data(), g.data());
  return g;
}

template <typename T>
void check_gram(int64_t n, int64_t c, double bound) {
  CAPTURE(n);
  CAPTURE(c);
  std::mt19937 random(static_cast<unsigned>(n * 31 + c));
  Array<T> a({n, c}, random);
  const std::vector<float> scale = scales_of(n);
  const std::vector<double> g = computed(a, scale, c, 3);
  CHECK(error_of(a, scale, c, g) < bound);
  CHECK(computed(a, scale, c, 1) == g);
}

// Sums of 256 products in f32 and the rounding of the scaled rows.
template <typename T>
double bound() {
  return std::is_same_v<T, double> ? 1e-14 : 256 * 0x1p-24;
}

TEST_CASE_TEMPLATE("scaled_gram: equals plain loops", T, float, bf16, f16, double) {
  check_gram<T>(1, 1, bound<T>());
  check_gram<T>(7, 33, bound<T>());
  check_gram<T>(261, 100, bound<T>());
  check_gram<T>(700, 65, bound<T>());
  check_gram<T>(4200, 17, bound<T>());
}

TEST_CASE("scaled_gram: rows that each have a scale of their own take the memory of f32") {
  constexpr int64_t kRows = 700, kColumns = 65;
  std::mt19937 random(3);
  Array<bf16> a({kRows, kColumns}, random);
  std::vector<float> scale, one(kRows, 0.5f);
  for (int64_t i = 0; i < kRows; ++i) scale.push_back(0.3f + 0.001f * static_cast<float>(i));
  CHECK(error_of(a, scale, kColumns, computed(a, scale, kColumns, 2)) < bound<bf16>());
  const auto bytes = [](const View& view, const float* scales) {
    TestContext ctx;
    std::vector<double> g(kColumns * kColumns);
    add_scaled_gram(ctx, view, scales, g.data());
    return ctx.scratch_bytes();
  };
  Array<float> wide({kRows, kColumns}, random);
  CHECK(bytes(a.view(), scale.data()) <= bytes(wide.view(), one.data()));
}

TEST_CASE("scaled_gram: no rows leave the sum as it is") {
  TestContext ctx;
  Array<float> a({0, 3});
  std::vector<double> g(9, 1.5);
  add_scaled_gram(ctx, a.view(), nullptr, g.data());
  CHECK(g == std::vector<double>(9, 1.5));
}

}  // namespace
