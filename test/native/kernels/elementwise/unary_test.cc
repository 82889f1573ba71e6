// Elementwise functions over every dtype: values against the C library, slopes against central
// differences, thread counts that must not change a bit, and what dropout and topk promise.
#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/shared/op_codes.h"
#include "kernels/shared/philox.h"
#include "support/views.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kSizes[] = {1, 31, 33, 123, 40001};

struct Function {
  int op;
  std::function<double(double)> value;
  bool positive = false;
  bool from_result = false;  // the slope is computed from the result
};

double logistic(double x) {
  return 1 / (1 + std::exp(-x));
}

const std::vector<Function> kFunctions{
    {BALORA_NEG, [](double x) { return -x; }},
    {BALORA_ABS, [](double x) { return std::abs(x); }},
    {BALORA_EXP, [](double x) { return std::exp(x); }, false, true},
    {BALORA_LOG, [](double x) { return std::log(x); }, true},
    {BALORA_SQRT, [](double x) { return std::sqrt(x); }, true, true},
    {BALORA_RSQRT, [](double x) { return 1 / std::sqrt(x); }, true, true},
    {BALORA_SQUARE, [](double x) { return x * x; }},
    {BALORA_SIN, [](double x) { return std::sin(x); }},
    {BALORA_COS, [](double x) { return std::cos(x); }},
    {BALORA_TANH, [](double x) { return std::tanh(x); }, false, true},
    {BALORA_SIGMOID, logistic, false, true},
    {BALORA_RELU, [](double x) { return std::max(x, 0.0); }, false, true},
    {BALORA_SILU, [](double x) { return x * logistic(x); }},
    {BALORA_GELU, [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }},
    {BALORA_GELU_TANH,
     [](double x) {
       return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
     }},
    {BALORA_SOFTPLUS, [](double x) { return std::log1p(std::exp(x)); }},
    {BALORA_CLAMP, [](double x) { return std::min(std::max(x, -1.25), 2.0); }},
    {BALORA_AFFINE, [](double x) { return -1.25 * x + 2.0; }},
};

TEST_CASE_TEMPLATE("values and slopes of every function", T, float, bf16, f16, double) {
  std::mt19937 random(1);
  for (const Function& f : kFunctions) {
    for (const int64_t n : kSizes) {
      Array<T> x({n}, random, 4), dy({n}, random), y({n}), y1({n}), dx({n});
      if (f.positive) {
        for (int64_t i = 0; i < n; ++i) x.data()[i] = from_double<T>(std::abs(x[i]) + 0.25);
      }
      std::vector<double> value, slope;
      for (int64_t i = 0; i < n; ++i) {
        value.push_back(f.value(x[i]));
        slope.push_back(dy[i] * (f.value(x[i] + 1e-5) - f.value(x[i] - 1e-5)) / 2e-5);
      }
      const View vx = x.view(), vdy = dy.view(), vy = y.view(), vy1 = y1.view(), vdx = dx.view();
      TestContext one(1), three(3);
      REQUIRE(
          unary_kernel(
              three,
              {.x = &vx, .y = &vy, .op = static_cast<balora_unary_op>(f.op), .a = -1.25, .b = 2}) ==
          0);
      REQUIRE(unary_kernel(one, {.x = &vx,
                                 .y = &vy1,
                                 .op = static_cast<balora_unary_op>(f.op),
                                 .a = -1.25,
                                 .b = 2}) == 0);
      INFO("op ", f.op, " n ", n);
      const double tolerance = 1.01 * epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-14 : 8e-7);
      check_close(y, value, tolerance);
      check_close(y1, y.values(), 0);
      REQUIRE(unary_backward_kernel(three, {.dy = &vdy,
                                            .saved = f.from_result ? &vy : &vx,
                                            .dx = &vdx,
                                            .op = static_cast<balora_unary_op>(f.op),
                                            .a = -1.25,
                                            .b = 2}) == 0);
      // A slope from a result carries that result's rounding too; central differences are good to
      // 1e-8 or so, and wrong within their step of a kink.
      for (int64_t i = 0; i < n; ++i) {
        const bool kink = (f.op == BALORA_ABS || f.op == BALORA_RELU) && std::abs(x[i]) < 2e-5;
        const bool limit =
            f.op == BALORA_CLAMP && std::min(std::abs(x[i] + 1.25), std::abs(x[i] - 2)) < 2e-5;
        if (kink || limit) slope[static_cast<size_t>(i)] = dx[i];
      }
      check_close(dx, slope, 6 * tolerance + 2e-8);
    }
  }
}

TEST_CASE_TEMPLATE("dropout keeps exactly the words above its threshold", T, float, bf16, f16,
                   double) {
  for (const int64_t n : kSizes) {
    Array<T> x({n}, std::vector<double>(static_cast<size_t>(n), 3.0)), y({n}), y1({n});
    const View vx = x.view(), vy = y.view(), vy1 = y1.view();
    TestContext one(1), three(3);
    REQUIRE(dropout_kernel(three, {.x = &vx, .y = &vy, .seed = 17, .stream = 5, .p = 0.25}) == 0);
    REQUIRE(dropout_kernel(one, {.x = &vx, .y = &vy1, .seed = 17, .stream = 5, .p = 0.25}) == 0);
    std::vector<double> expected;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t word = philox(17, static_cast<uint64_t>(i / 4), 5)[static_cast<size_t>(i % 4)];
      expected.push_back(word * 0x1p-32 < 0.25 ? 0 : 4);
    }
    check_close(y, expected, 2 * epsilon_of<T>());
    check_close(y1, y.values(), 0);
  }
}

TEST_CASE_TEMPLATE("topk: descending, the lower column of equals first, NaN on top", T, float, bf16,
                   double) {
  std::mt19937 random(2);
  TestContext ctx(3);
  for (const auto& size :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {33, 4}, {123, 64}, {123, 65}, {500, 0}}) {
    const int64_t width = size.first, k = size.second;
    Array<T> x({7, width}, random), values({7, k});
    Array<int32_t> columns({7, k});
    for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = from_double<T>(std::round(x[i] * 5));
    if (width > 1) x.data()[3] = from_double<T>(std::nan(""));
    const View vx = x.view(), vv = values.view(), vc = columns.view();
    REQUIRE(topk_kernel(ctx, {.x = &vx, .values = &vv, .columns = &vc}) == 0);
    for (int64_t n = 0; n < 7; ++n) {
      std::vector<int64_t> order(static_cast<size_t>(width));
      for (int64_t c = 0; c < width; ++c) order[static_cast<size_t>(c)] = c;
      const auto key = [&](int64_t c) {
        const double value = x[n * width + c];
        return std::isnan(value) ? INFINITY : value;
      };
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return key(a) > key(b); });
      for (int64_t j = 0; j < k; ++j) {
        const int64_t want = order[static_cast<size_t>(j)];
        if (columns[n * k + j] != want)
          FAIL_CHECK("row ", n, " place ", j, ": ", columns[n * k + j], ", expected ", want);
      }
    }
  }
}

}  // namespace
