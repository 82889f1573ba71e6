// The Chebyshev low-rank SVD against the optimum of the dense one, and each ground on
// which it must refuse.
#include <algorithm>
#include <vector>

#include "kernels/cpu/linalg/krylov.h"
#include "kernels/cpu/linalg/low_rank_svds.h"
#include "kernels/cpu/products/transpose16.h"
#include "support/kernel_test.h"

using namespace balora;
using namespace balora::test;

namespace {

// U diag(sigma(i)) V^T, rounded to f32, with random orthonormal U and V.
template <typename Sigma>
std::vector<float> designed(int64_t m, int64_t n, uint64_t seed, const Sigma& sigma) {
  TestContext ctx;
  const int64_t k = std::min(m, n);
  Matrix u = thin_qr(ctx, normal_matrix(ctx, m, k, seed)).q;
  const Matrix v = thin_qr(ctx, normal_matrix(ctx, n, k, seed + 1)).q;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < k; ++j) u(i, j) *= sigma(j);
  }
  const Matrix a = product(ctx, u, transposed(v));
  return {a.values.begin(), a.values.end()};
}

double weight_like(int64_t i) {  // a few large values, then a slow decay, as weights have
  return 3.0 / (1.0 + static_cast<double>(i)) + 1.0 - 0.0015 * static_cast<double>(i);
}

Matrix matrix_of(const LowRankProblem& p) {
  return widened({p.w.data, p.w.dtype, p.w.cols, 1}, p.w.rows, p.w.cols);
}

double frobenius(const Matrix& a) {
  double sum = 0;
  for (const double value : a.values) sum += value * value;
  return std::sqrt(sum);
}

double relative_error(const Matrix& a, const SvdResult& r) {
  TestContext ctx;
  Matrix us = r.u;
  for (int64_t i = 0; i < us.rows; ++i) {
    for (int64_t j = 0; j < us.cols; ++j) us(i, j) *= r.s[static_cast<size_t>(j)];
  }
  Matrix rest = product(ctx, us, r.vt);
  for (size_t i = 0; i < a.values.size(); ++i) rest.values[i] -= a.values[i];
  return frobenius(rest) / frobenius(a);
}

double optimum(const Matrix& a, int64_t rank) {
  TestContext ctx;
  const SvdResult full = thin_svd(ctx, a);
  double left = 0;
  for (size_t i = static_cast<size_t>(rank); i < full.s.size(); ++i) left += full.s[i] * full.s[i];
  return std::sqrt(left) / frobenius(a);
}

double orthonormality(const Matrix& q) {
  TestContext ctx;
  const Matrix gram = product_tn(ctx, q, q);
  double worst = 0;
  for (int64_t i = 0; i < gram.rows; ++i) {
    for (int64_t j = 0; j < gram.cols; ++j) {
      worst = std::max(worst, std::abs(gram(i, j) - (i == j ? 1 : 0)));
    }
  }
  return worst;
}

SvdOutcome run(const LowRankProblem& problem, SvdResult* result) {
  TestContext ctx;
  REQUIRE(chebyshev_svd_fits(problem));
  const auto bytes = static_cast<size_t>(chebyshev_svd_bytes(problem));
  void* scratch = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  std::memset(scratch, 0xff, bytes);  // NaNs: nothing may be read before it is written
  const SvdOutcome outcome = chebyshev_svd(ctx, problem, scratch, result);
  std::free(scratch);
  return outcome;
}

LowRankProblem problem_of(const std::vector<float>& w, int64_t rows, int64_t cols, int64_t rank,
                          int64_t niter) {
  return {{w.data(), BALORA_F32, rows, cols}, rank, niter, 10, 7};
}

void check_within(const LowRankProblem& problem, double excess) {
  SvdResult r;
  REQUIRE(run(problem, &r) == SvdOutcome::kDone);
  const Matrix a = matrix_of(problem);
  CHECK(relative_error(a, r) <= optimum(a, problem.rank) * (1 + excess) + 1e-6);
  CHECK(orthonormality(r.u) < 1e-5);
  CHECK(orthonormality(transposed(r.vt)) < 1e-5);
  CHECK(std::is_sorted(r.s.rbegin(), r.s.rend()));
}

std::vector<SvdResult> solve(Context* ctx, const std::vector<LowRankProblem>& problems) {
  std::vector<SvdResult> results(problems.size());
  low_rank_svds(ctx, problems, [&](size_t i, const SvdResult& result) {
    CHECK(results[i].s.empty());  // once
    results[i] = result;
  });
  return results;
}

}  // namespace

TEST_CASE("transpose16: a block of words, strided") {
  std::vector<uint32_t> from(16 * 20), to(16 * 18);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint32_t>(i);
  transpose16(from.data(), 20, to.data(), 18);
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 16; ++j) CHECK(to[j * 18 + i] == from[i * 20 + j]);
  }
}

TEST_CASE("orthonormal_weights: Y weights is orthonormal; dependent columns are refused") {
  TestContext ctx;
  Matrix y = normal_matrix(ctx, 50, 7, 3), weights;
  for (int64_t i = 0; i < 50; ++i) y(i, 2) *= 1e-9, y(i, 4) += 1e3 * y(i, 0);
  CHECK(orthonormal_weights(product_tn(ctx, y, y), 1e-10, &weights));
  CHECK(orthonormality(product(ctx, y, weights)) < 1e-9);
  for (int64_t i = 0; i < 50; ++i) y(i, 6) = y(i, 1);
  CHECK_FALSE(orthonormal_weights(product_tn(ctx, y, y), 1e-10, &weights));
  CHECK_FALSE(orthonormal_weights(Matrix(3, 3), 1e-10, &weights));
}

TEST_CASE("chebyshev_svd: to convergence, tall, wide, square and odd shapes") {
  for (const auto& [m, n] :
       {std::pair<int64_t, int64_t>{400, 160}, {160, 400}, {192, 192}, {333, 197}, {131, 259}}) {
    const std::vector<float> w = designed(m, n, 11, weight_like);
    check_within(problem_of(w, m, n, 8, -1), 1e-5);
  }
}

TEST_CASE("chebyshev_svd: power iterations capture what the f64 ones do, or more") {
  const std::vector<float> w = designed(256, 320, 21, weight_like);
  TestContext ctx;
  for (const int64_t niter : {0, 1, 2, 3, 5, 16}) {
    const LowRankProblem problem = problem_of(w, 256, 320, 12, niter);
    SvdResult r;
    REQUIRE(run(problem, &r) == SvdOutcome::kDone);
    const Matrix a = matrix_of(problem);
    const SvdResult plain = randomized_svd(ctx, a.ref(), 256, 320, 12, niter, 10, 7);
    CHECK(relative_error(a, r) <= relative_error(a, plain) * (1 + 1e-5) + 1e-6);
  }
}

TEST_CASE("chebyshev_svd: in bf16, where A^T A is exact, they end without a product with A") {
  const std::vector<float> w = designed(256, 320, 23, weight_like);
  std::vector<bf16> narrow(w.size());
  for (size_t i = 0; i < w.size(); ++i) narrow[i] = to_bf16(w[i]);
  TestContext ctx;
  for (const int64_t niter : {4, 5, 8, 16, 40}) {
    const LowRankProblem problem{{narrow.data(), BALORA_BF16, 256, 320}, 12, niter, 10, 7};
    SvdResult r;
    REQUIRE(run(problem, &r) == SvdOutcome::kDone);
    const Matrix a = matrix_of(problem);
    const SvdResult plain = randomized_svd(ctx, a.ref(), 256, 320, 12, niter, 10, 7);
    CHECK(relative_error(a, r) <= relative_error(a, plain) + 1e-7);
    CHECK(orthonormality(r.u) < 1e-5);
    CHECK(orthonormality(transposed(r.vt)) < 1e-5);
  }
}

TEST_CASE("chebyshev_svd: reads bf16 and f16 as they are") {
  const std::vector<float> w = designed(160, 224, 31, weight_like);
  std::vector<bf16> narrow(w.size());
  std::vector<f16> half(w.size());
  for (size_t i = 0; i < w.size(); ++i) narrow[i] = to_bf16(w[i]), half[i] = to_f16(w[i]);
  check_within({{narrow.data(), BALORA_BF16, 160, 224}, 9, -1, 10, 1}, 1e-5);
  check_within({{half.data(), BALORA_F16, 160, 224}, 9, -1, 10, 1}, 1e-5);
}

TEST_CASE("chebyshev_svd: a large first singular value and a large rank") {
  const std::vector<float> spiked =
      designed(200, 300, 41, [](int64_t i) { return i ? weight_like(i) : 100.0; });
  check_within(problem_of(spiked, 200, 300, 6, 16), 1e-5);
  const std::vector<float> w = designed(300, 280, 43, weight_like);
  check_within(problem_of(w, 300, 280, 100, -1), 1e-5);
}

TEST_CASE("chebyshev_svd: refuses by the numbers, and says why") {
  SvdResult r;
  const auto outcome = [&](const std::vector<float>& w, int64_t rank) {
    return run(problem_of(w, 160, 200, rank, -1), &r);
  };
  CHECK(outcome(std::vector<float>(160 * 200, 0.0f), 4) == SvdOutcome::kIllConditioned);
  const auto of_rank_5 = designed(160, 200, 51, [](int64_t i) { return i < 5 ? 1.0 : 0.0; });
  CHECK(outcome(of_rank_5, 4) != SvdOutcome::kDone);
  CHECK(outcome(of_rank_5, 8) != SvdOutcome::kDone);
  CHECK(outcome(designed(160, 200, 53, [](int64_t i) { return std::pow(0.3, i); }), 8) !=
        SvdOutcome::kDone);
  CHECK(outcome(designed(160, 200, 55,
                         [](int64_t i) {
                           return i < 4 ? 400.0 - static_cast<double>(i) : weight_like(i);
                         }),
                4) == SvdOutcome::kSmallRest);
  CHECK(outcome(designed(160, 200, 57, [](int64_t i) { return i ? 1e-4 * weight_like(i) : 1.0; }),
                4) != SvdOutcome::kDone);
  CHECK(outcome(std::vector<float>(160 * 200, 1e30f), 4) == SvdOutcome::kIllConditioned);
  CHECK_FALSE(chebyshev_svd_fits(problem_of({}, 100, 200, 4, -1)));
  CHECK_FALSE(chebyshev_svd_fits(problem_of({}, 200, 200, 95, -1)));
  LowRankProblem wide = problem_of({}, 200, 200, 4, -1);
  wide.w.dtype = BALORA_F64;
  CHECK_FALSE(chebyshev_svd_fits(wide));
}

TEST_CASE(
    "low_rank_svds: refused matrices come from the f64 way, the thread count changes nothing") {
  const std::vector<float> w = designed(192, 256, 61, weight_like);
  const std::vector<float> steep =
      designed(192, 256, 63, [](int64_t i) { return std::pow(0.5, i); });
  const std::vector<float> small = designed(20, 30, 65, weight_like);
  std::vector<std::vector<double>> values;
  for (const int threads : {1, 2, 3}) {
    TestContext ctx(threads);
    const std::vector<LowRankProblem> problems = {
        problem_of(w, 192, 256, 8, -1), problem_of(steep, 192, 256, 24, -1),
        problem_of(small, 20, 30, 5, 3), problem_of(w, 192, 256, 8, 4)};
    const std::vector<SvdResult> results = solve(ctx, problems);
    std::vector<double> all;
    for (size_t i = 0; i < problems.size(); ++i) {
      const SvdResult alone = solve(ctx, {problems[i]})[0];
      CHECK(alone.u.values == results[i].u.values);
      CHECK(alone.s == results[i].s);
      CHECK(relative_error(matrix_of(problems[i]), results[i]) <=
            optimum(matrix_of(problems[i]), problems[i].rank) * 1.05 + 1e-6);
      all.insert(all.end(), results[i].u.values.begin(), results[i].u.values.end());
    }
    values.push_back(all);
    // 0.5^23: far below f32's squares.
    CHECK(std::abs(results[1].s[23] / std::pow(0.5, 23) - 1) < 0.2);
  }
  CHECK(values[0] == values[1]);
  CHECK(values[0] == values[2]);
  std::vector<float> nan = w;
  nan[77] = std::nanf("");
  TestContext ctx;
  CHECK_THROWS_AS(solve(ctx, {problem_of(nan, 192, 256, 8, -1)}), NativeError);
  CHECK_THROWS_AS(solve(ctx, {problem_of(w, 192, 256, 8, 4), problem_of(nan, 192, 256, 8, 4)}),
                  NativeError);
}
