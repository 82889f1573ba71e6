// Matrices with chosen properties, and what the tests of decompositions measure on the results.
#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/linalg/dense.h"

namespace balora::test {

inline Matrix matrix_of(const std::vector<double>& values, int64_t rows, int64_t cols) {
  Matrix out(rows, cols);
  out.values = values;
  return out;
}

inline Matrix random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  Context ctx{};
  ctx.num_threads = 1;
  return normal_matrix(&ctx, rows, cols, seed);
}

inline Matrix multiply(const Matrix& a, const Matrix& b) {
  Context ctx{};
  ctx.num_threads = 1;
  return product(&ctx, a, b);
}

inline double largest(const Matrix& a) {
  double out = 0;
  for (const double value : a.values) out = std::max(out, std::abs(value));
  return out;
}

inline double max_difference(const Matrix& a, const Matrix& b) {
  REQUIRE(a.values.size() == b.values.size());
  double worst = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    const double gap = std::abs(a.values[i] - b.values[i]);
    worst = gap <= worst ? worst : gap;  // a NaN stays
  }
  return worst;
}

inline double orthonormality(const Matrix& q) {
  Matrix gram = multiply(transposed(q), q);
  for (int64_t i = 0; i < gram.rows; ++i) gram(i, i) -= 1;
  return largest(gram);
}

inline Matrix scaled_columns(Matrix a, const std::vector<double>& d) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) a(i, j) *= d[static_cast<size_t>(j)];
  }
  return a;
}

// U diag(values) V^T, (m,n), with random orthonormal U and V.
inline Matrix with_values(int64_t m, int64_t n, const std::vector<double>& values, uint64_t seed) {
  Context ctx{};
  ctx.num_threads = 1;
  const int64_t k = std::min(m, n);
  const Matrix u = thin_qr(&ctx, random_matrix(m, k, seed)).q;
  const Matrix v = thin_qr(&ctx, random_matrix(n, k, seed + 1)).q;
  return multiply(scaled_columns(u, values), transposed(v));
}

// Singular values decay as ratio^i.
inline Matrix decaying(int64_t m, int64_t n, double ratio, uint64_t seed) {
  std::vector<double> values;
  for (int64_t i = 0; i < std::min(m, n); ++i) {
    values.push_back(std::pow(ratio, static_cast<double>(i)));
  }
  return with_values(m, n, values, seed);
}

// U diag(values) U^T
inline Matrix designed(const std::vector<double>& values, uint64_t seed) {
  Context ctx{};
  ctx.num_threads = 1;
  const auto n = static_cast<int64_t>(values.size());
  const Matrix u = thin_qr(&ctx, random_matrix(n, n, seed)).q;
  Matrix a = multiply(scaled_columns(u, values), transposed(u));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) a(j, i) = a(i, j);
  }
  return a;
}

inline Matrix times(Matrix a, double factor) {
  for (double& value : a.values) value *= factor;
  return a;
}

}  // namespace balora::test
