// The last singular triplets against those of the complete decomposition: values, subspaces and
// what is left of the matrix, for the spectra of weights, for clusters, and where a Gram matrix
// alone would lose them.
#include "kernels/cpu/linalg/trailing_svd.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "support/kernel_test.h"
#include "support/matrices.h"

using namespace balora;
using namespace balora::test;

namespace {

// |P - Q| of the projectors on the columns of two orthonormal matrices: sqrt(2) |sines|.
double distance(const Matrix& a, const Matrix& b) {
  const Matrix inner = multiply(transposed(a), b);
  double sum = 0;
  for (const double value : inner.values) sum += value * value;
  return std::sqrt(std::max(0.0, 2 * (static_cast<double>(a.cols) - sum)));
}

struct Found {
  double values, left, right;  // errors, the first relative
};

Found compared(const Matrix& a, int64_t rank) {
  TestContext ctx;
  const SvdResult found = trailing_svd(ctx, a.ref(), a.rows, a.cols, rank, 5);
  const SvdResult exact = complete_trailing_svd(ctx, a.ref(), a.rows, a.cols, rank);
  CHECK(std::is_sorted(found.s.rbegin(), found.s.rend()));
  CHECK(orthonormality(found.u) < 1e-12);
  CHECK(orthonormality(transposed(found.vt)) < 1e-12);
  // Each pair of vectors belongs to its value, as far as the subspace is that of the last ones.
  const Matrix rest = multiply(a, transposed(found.vt));
  CHECK(max_difference(rest, scaled_columns(found.u, found.s)) < 1e-7 * largest(a));
  double worst = 0;
  for (size_t i = 0; i < found.s.size(); ++i) {
    worst = std::max(worst, std::abs(found.s[i] / exact.s[i] - 1));
  }
  return {worst, distance(found.u, exact.u), distance(transposed(found.vt), transposed(exact.vt))};
}

void check_near(const Matrix& a, int64_t rank, double values, double vectors) {
  CAPTURE(a.rows);
  CAPTURE(a.cols);
  CAPTURE(rank);
  for (const Matrix& each : {a, transposed(a)}) {
    const Found found = compared(each, rank);
    CHECK(found.values < values);
    CHECK(found.left < vectors);
    CHECK(found.right < vectors);
  }
}

// A few large values, a slow decay, and an end that is `ratio` times as small.
Matrix weight_like(int64_t m, int64_t n, double ratio, uint64_t seed) {
  std::vector<double> sigma;
  const auto k = static_cast<double>(std::min(m, n));
  for (int64_t i = 0; i < std::min(m, n); ++i) {
    const double at = static_cast<double>(i) / k;
    sigma.push_back((3.0 / (1.0 + 20 * at) + 1) * (1 - (1 - ratio) * at * at));
  }
  return with_values(m, n, sigma, seed);
}

TEST_CASE("trailing_svd: weights, square and long, of even and odd sizes") {
  check_near(random_matrix(192, 192, 1), 16, 1e-9, 1e-6);
  check_near(random_matrix(300, 181, 2), 5, 1e-9, 1e-6);
  check_near(weight_like(261, 260, 1e-3, 3), 16, 1e-9, 1e-6);
  check_near(weight_like(500, 200, 0.1, 4), 7, 1e-9, 1e-6);
  check_near(random_matrix(170, 163, 5), 1, 1e-9, 1e-6);
}

TEST_CASE("trailing_svd: where the Gram matrix's vectors need a correction by the matrix") {
  check_near(weight_like(261, 260, 1e-4, 7), 16, 1e-9, 1e-6);
  check_near(weight_like(400, 200, 1e-5, 8), 9, 1e-8, 1e-6);
  check_near(decaying(300, 190, std::pow(10.0, -5.0 / 190), 9), 10, 1e-9, 1e-6);
}

TEST_CASE("trailing_svd: where the Gram matrix would lose the values") {
  check_near(weight_like(260, 200, 1e-6, 11), 16, 1e-6, 1e-5);
  check_near(weight_like(220, 210, 1e-9, 12), 8, 1e-4, 1e-3);
  // Condition 1e8 on every scale: what a covariance of inputs makes of a weight.
  check_near(decaying(200, 190, std::pow(10.0, -8.0 / 190), 13), 10, 1e-6, 1e-5);
}

TEST_CASE("trailing_svd: a cluster at the end, zero rows, and a zero matrix") {
  TestContext ctx;
  std::vector<double> sigma(200, 2.0);
  std::fill(sigma.begin() + 150, sigma.end(), 1.0);
  const Matrix a = with_values(220, 200, sigma, 21);
  for (const double s : trailing_svd(ctx, a.ref(), 220, 200, 12, 3).s) {
    CHECK(std::abs(s - 1) < 1e-10);
  }
  Matrix deficient = random_matrix(180, 170, 22);
  for (int64_t i = 0; i < 180; ++i) deficient(i, 40) = 0;
  CHECK(trailing_svd(ctx, deficient.ref(), 180, 170, 4, 3).s.back() < 1e-12);
  const SvdResult zero = trailing_svd(ctx, Matrix(165, 170).ref(), 165, 170, 3, 3);
  for (const double s : zero.s) CHECK(s == 0);
  CHECK(orthonormality(zero.u) < 1e-12);
}

TEST_CASE("trailing_svd: small matrices and large ranks are decomposed completely") {
  for (const auto& [m, n, rank] :
       std::vector<std::array<int64_t, 3>>{{9, 5, 2}, {1, 7, 1}, {40, 40, 40}, {200, 180, 60}}) {
    check_near(random_matrix(m, n, 31), rank, 1e-9, 1e-6);
  }
}

TEST_CASE("trailing_svd: of bf16, and the same bits whatever the threads and the other matrices") {
  std::vector<bf16> rounded;
  for (const double value : random_matrix(200, 170, 41).values) {
    rounded.push_back(from_double<bf16>(value));
  }
  const MatrixRef narrow{rounded.data(), BALORA_BF16, 170, 1};
  const Matrix wide = widened(narrow, 200, 170);
  TestContext ctx;
  const SvdResult from_narrow = trailing_svd(ctx, narrow, 200, 170, 9, 7);
  CHECK(from_narrow.vt.values == trailing_svd(ctx, wide.ref(), 200, 170, 9, 7).vt.values);
  ctx.set_threads(1);
  CHECK(from_narrow.u.values == trailing_svd(ctx, narrow, 200, 170, 9, 7).u.values);
}

TEST_CASE("trailing_svd: NaN and infinity are a named failure") {
  TestContext ctx;
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    for (const int64_t n : {20, 190}) {
      Matrix a = random_matrix(200, n, 51);
      a(3, 7) = bad;
      CHECK_THROWS_WITH(trailing_svd(ctx, a.ref(), 200, n, 3, 1),
                        "the matrix holds NaN or infinity");
    }
  }
}

}  // namespace
