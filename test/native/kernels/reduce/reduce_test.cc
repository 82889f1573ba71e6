// Reductions against plain f64 loops; accuracy over long rows, thread counts, NaN, ties.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/shared/op_codes.h"
#include "support/views.h"

namespace {

using namespace balora;
using namespace balora::test;

using Extents = std::array<int64_t, 3>;
const std::vector<Extents> kExtents{{1, 1, 1},     {31, 33, 1}, {3, 31, 123}, {1, 100003, 1},
                                    {2, 123, 513}, {5, 2, 3},   {123, 1, 1}};

// The R values of column (a, c).
template <typename T>
std::vector<double> column(const Array<T>& x, const Extents& e, int64_t a, int64_t c) {
  std::vector<double> out;
  for (int64_t r = 0; r < e[1]; ++r) out.push_back(x[(a * e[1] + r) * e[2] + c]);
  return out;
}

double plain(int op, const std::vector<double>& x, double correction) {
  double sum = 0, peak = -INFINITY, square = 0, exponentials = 0;
  for (const double v : x) sum += v, peak = std::max(peak, v);
  const auto n = static_cast<double>(x.size());
  for (const double v : x)
    square += (v - sum / n) * (v - sum / n), exponentials += std::exp(v - peak);
  switch (op) {
    case BALORA_SUM:
      return sum;
    case BALORA_MEAN:
      return sum / n;
    case BALORA_LOGSUMEXP:
      return peak + std::log(exponentials);
    default:
      return square / (n - correction);
  }
}

TEST_CASE_TEMPLATE("sum, mean, logsumexp and variance", T, float, bf16, f16, double) {
  std::mt19937 random(7);
  for (const Extents& e : kExtents) {
    Array<T> x({e[0], e[1], e[2]}, random, 3);
    for (int64_t i = 0; i < x.size(); ++i)
      x.data()[i] = from_double<T>(x[i] + 10);  // a mean far from zero
    const View vx = x.view();
    for (const int op : {BALORA_SUM, BALORA_MEAN, BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
      const double correction = e[1] > 1 ? 1 : 0;
      std::vector<double> expected;
      for (int64_t a = 0; a < e[0]; ++a) {
        for (int64_t c = 0; c < e[2]; ++c)
          expected.push_back(plain(op, column(x, e, a, c), correction));
      }
      // Outputs wider than the input: the sum itself must be right, not just its rounding.
      Array<Acc<T>> first({e[0], e[2]}), second({e[0], e[2]});
      const View v1 = first.view(), v2 = second.view();
      TestContext one(1), three(3);
      REQUIRE(reduce_kernel(one, {.x = &vx,
                                  .y = &v1,
                                  .op = static_cast<balora_reduce_op>(op),
                                  .correction = correction}) == 0);
      REQUIRE(reduce_kernel(three, {.x = &vx,
                                    .y = &v2,
                                    .op = static_cast<balora_reduce_op>(op),
                                    .correction = correction}) == 0);
      INFO("op ", op, " R ", e[1], " C ", e[2]);
      check_close(first, expected, std::is_same_v<T, double> ? 1e-11 : 3e-7);
      check_close(second, first.values(), 0);
      Array<T> narrow({e[0], e[2]});
      const View vn = narrow.view();
      if (std::is_same_v<T, f16> && e[1] > 1000) continue;  // the sum is beyond its range
      REQUIRE(reduce_kernel(three, {.x = &vx,
                                    .y = &vn,
                                    .op = static_cast<balora_reduce_op>(op),
                                    .correction = correction}) == 0);
      check_close(narrow, expected, 2 * epsilon_of<T>() + 1e-12);
    }
  }
}

TEST_CASE("logsumexp of infinities and NaN; sums of nothing") {
  TestContext ctx;
  constexpr double inf = std::numeric_limits<double>::infinity();
  Array<float> x({4, 2, 1}, {-inf, -inf, -inf, 1, inf, 1, std::nan(""), 1}), y({4, 1});
  const View vx = x.view(), vy = y.view();
  REQUIRE(reduce_kernel(ctx, {.x = &vx, .y = &vy, .op = BALORA_LOGSUMEXP, .correction = 0}) == 0);
  CHECK(y[0] == -inf);
  CHECK(y[1] == 1);
  CHECK(y[2] == inf);
  CHECK(std::isnan(y[3]));
  Array<float> none({2, 0, 1}), zero({2, 1});
  const View vnone = none.view(), vzero = zero.view();
  REQUIRE(reduce_kernel(ctx, {.x = &vnone, .y = &vzero, .op = BALORA_SUM, .correction = 0}) == 0);
  check_close(zero, {0, 0}, 0);
}

TEST_CASE("gradients of logsumexp and variance against central differences") {
  TestContext ctx;
  std::mt19937 random(8);
  const Extents e{3, 31, 5};
  Array<double> x({3, 31, 5}, random), dy({3, 5}, random), y({3, 5}), dx({3, 31, 5});
  const View vx = x.view(), vdy = dy.view(), vy = y.view(), vdx = dx.view();
  for (const int op : {BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
    REQUIRE(
        reduce_kernel(
            ctx, {.x = &vx, .y = &vy, .op = static_cast<balora_reduce_op>(op), .correction = 1}) ==
        0);
    REQUIRE(reduce_backward_kernel(ctx, {.dy = &vdy,
                                         .x = &vx,
                                         .y = &vy,
                                         .dx = &vdx,
                                         .op = static_cast<balora_reduce_op>(op),
                                         .correction = 1}) == 0);
    std::vector<double> expected(465);
    for (int64_t i = 0; i < 465; ++i) {
      const int64_t a = i / 155, r = i / 5 % 31, c = i % 5;
      std::vector<double> up = column(x, e, a, c), down = up;
      up[static_cast<size_t>(r)] += 1e-6;
      down[static_cast<size_t>(r)] -= 1e-6;
      expected[static_cast<size_t>(i)] =
          dy[a * 5 + c] * (plain(op, up, 1) - plain(op, down, 1)) / 2e-6;
    }
    check_close(dx, expected, 1e-8);
  }
}

// Slopes in f64: e^(x - y), and 2 (x - mean) / (R - correction).
TEST_CASE_TEMPLATE("gradients of logsumexp and variance equal their formulas", T, float, bf16, f16,
                   double) {
  std::mt19937 random(10);
  for (const Extents& e : kExtents) {
    Array<T> x({e[0], e[1], e[2]}, random, 3), dy({e[0], e[2]}, random);
    Array<T> one({e[0], e[1], e[2]}), three({e[0], e[1], e[2]});
    Array<Acc<T>> y({e[0], e[2]});
    const View vx = x.view(), vdy = dy.view(), vy = y.view();
    for (const int op : {BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
      const auto code = static_cast<balora_reduce_op>(op);
      const double correction = e[1] > 1 ? 1 : 0, rows = static_cast<double>(e[1]);
      TestContext single(1), several(3);
      REQUIRE(reduce_kernel(single, {.x = &vx, .y = &vy, .op = code, .correction = correction}) ==
              0);
      for (const auto& [ctx, to] : {std::pair(&single, &one), std::pair(&several, &three)}) {
        const View vdx = to->view();
        REQUIRE(reduce_backward_kernel(*ctx, {.dy = &vdy,
                                              .x = &vx,
                                              .y = &vy,
                                              .dx = &vdx,
                                              .op = code,
                                              .correction = correction}) == 0);
      }
      std::vector<double> expected(static_cast<size_t>(x.size()));
      for (int64_t a = 0; a < e[0]; ++a) {
        for (int64_t c = 0; c < e[2]; ++c) {
          const std::vector<double> values = column(x, e, a, c);
          const double mean = plain(BALORA_MEAN, values, 0), total = plain(op, values, correction);
          for (int64_t r = 0; r < e[1]; ++r) {
            const double value = values[static_cast<size_t>(r)];
            const double slope = op == BALORA_LOGSUMEXP ? std::exp(value - total)
                                                        : 2 * (value - mean) / (rows - correction);
            expected[static_cast<size_t>((a * e[1] + r) * e[2] + c)] = dy[a * e[2] + c] * slope;
          }
        }
      }
      INFO("op ", op, " R ", e[1], " C ", e[2]);
      check_close(one, expected, epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-13 : 3e-6));
      CHECK(std::memcmp(one.data(), three.data(), static_cast<size_t>(one.size()) * sizeof(T)) ==
            0);
    }
  }
}

TEST_CASE_TEMPLATE("extremes and their first positions", T, float, bf16, double) {
  std::mt19937 random(9);
  TestContext ctx(3);
  for (const Extents& e : kExtents) {
    Array<T> x({e[0], e[1], e[2]}, random), values({e[0], e[2]});
    for (int64_t i = 0; i < x.size(); ++i)
      x.data()[i] = from_double<T>(std::round(x[i] * 8));  // many ties
    Array<int32_t> positions({e[0], e[2]});
    const View vx = x.view(), vv = values.view(), vp = positions.view();
    for (const int is_max : {0, 1}) {
      REQUIRE(extreme_kernel(ctx, {.x = &vx, .values = &vv, .positions = &vp, .is_max = is_max}) ==
              0);
      std::vector<double> expected, where;
      for (int64_t i = 0; i < e[0] * e[2]; ++i) {
        const std::vector<double> v = column(x, e, i / e[2], i % e[2]);
        const auto best =
            is_max ? std::max_element(v.begin(), v.end()) : std::min_element(v.begin(), v.end());
        expected.push_back(*best);
        where.push_back(static_cast<double>(best - v.begin()));
      }
      check_close(values, expected, 0);
      check_close(positions, where, 0);
    }
  }
  Array<T> x({1, 3, 1}, {1, std::nan(""), 2}), value({1, 1});
  const View vx = x.view(), vv = value.view();
  REQUIRE(extreme_kernel(ctx, {.x = &vx, .values = &vv, .is_max = 1}) == 0);
  CHECK(std::isnan(value[0]));
}

}  // namespace
