// product_f64 against plain loops: every dtype, transposed operands, odd sizes, accumulation, the
// symmetric form.
#include "kernels/cpu/products/product_f64.h"

#include "support/kernel_test.h"

using namespace balora;
using namespace balora::test;

namespace {

template <typename T>
void check_product(int64_t m, int64_t n, int64_t k, bool ta, bool tb, bool accumulate) {
  std::mt19937 random(static_cast<unsigned>(m * 31 + n * 7 + k));
  TestContext ctx(3);
  Array<T> a({m, k}, random), b({k, n}, random);
  std::vector<double> c(static_cast<size_t>(m * n), 0.5);
  const MatrixRef ra{a.data(), dtype_of<T>(), ta ? 1 : k, ta ? m : 1};
  const MatrixRef rb{b.data(), dtype_of<T>(), tb ? 1 : n, tb ? k : 1};
  product_f64(ctx, m, n, k, ra, rb, c.data(), n, 1, accumulate ? 1 : 0);
  double worst = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = accumulate ? 0.5 : 0;
      for (int64_t p = 0; p < k; ++p) {
        sum += a[ta ? p * m + i : i * k + p] * b[tb ? j * k + p : p * n + j];
      }
      worst = std::max(worst, std::abs(sum - c[static_cast<size_t>(i * n + j)]));
    }
  }
  CHECK(worst <= 1e-14 * static_cast<double>(k));
}

}  // namespace

TEST_CASE_TEMPLATE("product_f64 equals plain loops", T, float, bf16, f16, double) {
  check_product<T>(1, 1, 1, false, false, false);
  check_product<T>(31, 33, 7, false, true, false);
  check_product<T>(123, 9, 300, true, false, true);
  check_product<T>(5, 1100, 257, true, true, false);
}

TEST_CASE("symmetric_product_f64 is exactly symmetric and equal to the full product") {
  std::mt19937 random(3);
  TestContext ctx(2);
  const int64_t m = 101, k = 530;
  Array<float> a({m, k}, random);
  const MatrixRef ref{a.data(), BALORA_F32, k, 1};
  std::vector<double> full(m * m), half(m * m);
  product_f64(ctx, m, m, k, ref, ref.transposed(), full.data(), m);
  symmetric_product_f64(ctx, m, k, ref, ref.transposed(), half.data());
  CHECK(full == half);
}

TEST_CASE("product_f64 does not depend on the thread count") {
  std::mt19937 random(4);
  TestContext one(1), many(5);
  const int64_t m = 210, n = 77, k = 600;
  Array<float> a({m, k}, random), b({k, n}, random);
  const MatrixRef ra{a.data(), BALORA_F32, k, 1}, rb{b.data(), BALORA_F32, n, 1};
  std::vector<double> c1(m * n), c5(m * n);
  product_f64(one, m, n, k, ra, rb, c1.data(), n);
  product_f64(many, m, n, k, ra, rb, c5.data(), n);
  CHECK(c1 == c5);
}
