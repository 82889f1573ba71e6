// qr, eigh, svd and randomized_svd by their defining properties, on well and badly conditioned,
// deficient and odd shapes.
#include <algorithm>

#include "kernels/cpu/linalg/krylov.h"
#include "support/kernel_test.h"

using namespace balora;
using namespace balora::test;

namespace {

Matrix random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  TestContext ctx;
  return normal_matrix(ctx, rows, cols, seed);
}

// Singular values decay as ratio^i.
Matrix decaying(int64_t m, int64_t n, double ratio, uint64_t seed) {
  TestContext ctx;
  const int64_t k = std::min(m, n);
  Matrix u = thin_qr(ctx, random_matrix(m, k, seed)).q;
  const Matrix v = thin_qr(ctx, random_matrix(n, k, seed + 1)).q;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < k; ++j) u(i, j) *= std::pow(ratio, static_cast<double>(j));
  }
  return product(ctx, u, transposed(v));
}

double max_difference(const Matrix& a, const Matrix& b) {
  REQUIRE(a.values.size() == b.values.size());
  double worst = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    worst = std::max(worst, std::abs(a.values[i] - b.values[i]));
  }
  return worst;
}

double orthonormality(const Matrix& q) {
  TestContext ctx;
  Matrix gram = product_tn(ctx, q, q);
  for (int64_t i = 0; i < gram.rows; ++i) gram(i, i) -= 1;
  return max_difference(gram, Matrix(gram.rows, gram.cols));
}

double relative_error(const Matrix& a, const SvdResult& r) {
  TestContext ctx;
  Matrix us = r.u;
  for (int64_t i = 0; i < us.rows; ++i) {
    for (int64_t j = 0; j < us.cols; ++j) us(i, j) *= r.s[static_cast<size_t>(j)];
  }
  const Matrix approximation = product(ctx, us, r.vt);
  double error = 0, total = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    error += std::pow(a.values[i] - approximation.values[i], 2);
    total += a.values[i] * a.values[i];
  }
  return std::sqrt(error / total);
}

double optimum(const Matrix& a, int64_t rank) {
  TestContext ctx;
  const SvdResult full = thin_svd(ctx, a);
  double left = 0, total = 0;
  for (size_t i = 0; i < full.s.size(); ++i) {
    total += full.s[i] * full.s[i];
    if (static_cast<int64_t>(i) >= rank) left += full.s[i] * full.s[i];
  }
  return std::sqrt(left / total);
}

void check_qr(const Matrix& a) {
  TestContext ctx;
  const QrResult r = thin_qr(ctx, a);
  CHECK(orthonormality(r.q) < 1e-13 * static_cast<double>(a.rows));
  double scale = 0;
  for (const double value : a.values) scale = std::max(scale, std::abs(value));
  CHECK(max_difference(product(ctx, r.q, r.r), a) <= 1e-13 * static_cast<double>(a.cols) * scale);
  for (int64_t i = 0; i < r.r.rows; ++i) {
    CHECK(r.r(i, i) >= 0);
    for (int64_t j = 0; j < std::min(i, r.r.cols); ++j) CHECK(r.r(i, j) == 0);
  }
}

}  // namespace

TEST_CASE("qr: orthonormal Q, upper triangular R with a non-negative diagonal, Q R = A") {
  check_qr(random_matrix(200, 31, 1));
  check_qr(random_matrix(33, 33, 2));
  check_qr(random_matrix(7, 20, 3));
  check_qr(random_matrix(1, 1, 4));
  check_qr(decaying(100, 30, 0.3, 5));  // condition 1e15: the Householder way
  check_qr(Matrix(9, 4));               // zero
}

TEST_CASE("eigh: ascending values, orthonormal vectors, A V = V diag(w)") {
  TestContext ctx;
  const Matrix root = random_matrix(40, 61, 6);
  const Matrix a = product_tn(ctx, root, root);  // 61 x 61 of rank 40
  const EighResult r = symmetric_eigen(a);
  CHECK(std::is_sorted(r.values.begin(), r.values.end()));
  CHECK(orthonormality(r.vectors) < 1e-12);
  Matrix scaled = r.vectors;
  for (int64_t i = 0; i < 61; ++i) {
    for (int64_t j = 0; j < 61; ++j) scaled(i, j) *= r.values[static_cast<size_t>(j)];
  }
  CHECK(max_difference(product(ctx, a, r.vectors), scaled) < 1e-11 * r.values.back());
  Matrix bad(2, 2);
  bad(1, 0) = std::nan("");
  CHECK_THROWS_AS(symmetric_eigen(bad), NativeError);
}

TEST_CASE("svd: descending values and a reconstruction to rounding, tall, wide and square") {
  TestContext ctx;
  for (const auto& [m, n] :
       {std::pair<int64_t, int64_t>{123, 31}, {31, 123}, {33, 33}, {1, 9}, {9, 1}}) {
    const Matrix a = random_matrix(m, n, 7);
    const SvdResult r = thin_svd(ctx, a);
    CHECK(std::is_sorted(r.s.rbegin(), r.s.rend()));
    CHECK(relative_error(a, r) < 1e-13);
    CHECK(orthonormality(r.u) < 1e-12);
    CHECK(orthonormality(transposed(r.vt)) < 1e-12);
  }
}

TEST_CASE("leading_eigenpairs: the Krylov iteration agrees with the dense solver") {
  TestContext ctx;
  const Matrix root = decaying(300, 300, 0.995, 8);
  const Matrix a = product(ctx, root, transposed(root));
  const RitzPairs pairs = leading_eigenpairs(ctx, a, 10);
  const EighResult dense = symmetric_eigen(a);
  for (int64_t j = 0; j < 10; ++j) {
    CHECK(std::abs(pairs.values[static_cast<size_t>(j)] -
                   dense.values[static_cast<size_t>(299 - j)]) < 1e-13);
  }
  CHECK_FALSE(pairs.exact);  // or this would compare the dense solver with itself
  CHECK(orthonormality(pairs.vectors) < 1e-12);
}

TEST_CASE("randomized_svd: close to the optimum after a few iterations, the same for one seed") {
  TestContext ctx;
  const Matrix a = decaying(150, 210, 0.97, 9);
  const SvdResult r = randomized_svd(ctx, a.ref(), 150, 210, 12, 4, 8, 77);
  CHECK(r.s.size() == 12);
  CHECK(relative_error(a, r) < optimum(a, 12) * 1.001);
  CHECK(orthonormality(r.u) < 1e-12);
  CHECK(orthonormality(transposed(r.vt)) < 1e-12);
  const SvdResult again = randomized_svd(ctx, a.ref(), 150, 210, 12, 4, 8, 77);
  CHECK(r.u.values == again.u.values);
  CHECK(randomized_svd(ctx, a.ref(), 150, 210, 12, 0, 0, 78).u.values != again.u.values);
}

TEST_CASE("converged_svd: captured energy within the stated bound, and the clamped rank") {
  TestContext ctx;
  for (const double ratio : {0.5, 0.9, 0.99, 0.999}) {
    const Matrix a = decaying(230, 400, ratio, 10);
    const SvdResult r = converged_svd(ctx, a.ref(), 230, 400, 8, 8, 3);
    CHECK(relative_error(a, r) <= optimum(a, 8) * (1 + 1e-5) + 1e-6);
    CHECK(orthonormality(r.u) < 1e-12);
  }
  // A flat spectrum: the first cycles gain little beside the energy there is from the start.
  const Matrix flat = decaying(105, 130, 0.999, 10);
  const SvdResult of_flat = converged_svd(ctx, flat.ref(), 105, 130, 6, 6, 7);
  CHECK(relative_error(flat, of_flat) <= optimum(flat, 6) * (1 + 1e-5) + 1e-6);
  CHECK(converged_svd(ctx, random_matrix(5, 9, 1).ref(), 5, 9, 7, 8, 1).s.size() == 5);
  const SvdResult zero = converged_svd(ctx, Matrix(130, 140).ref(), 130, 140, 3, 8, 1);
  for (const double s : zero.s) CHECK(s == 0);
}
