// fill, arange, copy and the binary kernels against plain loops: every dtype, strided and broadcast
// operands, sizes that fill no vector, and thread counts that must not change a bit.
#include <cmath>
#include <limits>

#include "kernels/shared/op_codes.h"
#include "support/views.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kSizes[] = {0, 1, 31, 33, 123, 70001};
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double plain(int op, double a, double b) {
  switch (op) {
    case BALORA_ADD:
      return a + b;
    case BALORA_SUB:
      return a - b;
    case BALORA_MUL:
      return a * b;
    case BALORA_DIV:
      return a / b;
    case BALORA_POW:
      return std::pow(a, b);
    case BALORA_MAXIMUM:
      return a > b ? a : b;
    default:
      return a < b ? a : b;
  }
}

TEST_CASE_TEMPLATE("fill and arange", T, float, bf16, f16, double, int32_t, int64_t, uint8_t) {
  TestContext ctx;
  for (const int64_t n : kSizes) {
    Array<T> y({n});
    const View view = y.view();
    REQUIRE(fill_kernel(ctx, {.y = &view, .value = 3}) == 0);
    check_close(y, std::vector<double>(static_cast<size_t>(n), 3.0), 0);
    if (n > 200) continue;  // beyond what u8 and bf16 count to exactly
    REQUIRE(arange_kernel(ctx, {.y = &view, .start = 2, .step = 1}) == 0);
    std::vector<double> expected;
    for (int64_t i = 0; i < n; ++i) expected.push_back(static_cast<double>(2 + i));
    check_close(y, expected, 0);
  }
}

TEST_CASE("fill writes a strided view only") {
  TestContext ctx;
  Array<float> y({4, 6}, std::vector<double>(24, 1.0));
  View every_other = y.view();
  every_other.shape[1] = 3;
  every_other.stride[1] = 2;
  REQUIRE(fill_kernel(ctx, {.y = &every_other, .value = 5}) == 0);
  for (int64_t i = 0; i < 24; ++i) CHECK(y[i] == (i % 2 == 0 ? 5 : 1));
}

template <typename S, typename D>
void check_cast(std::mt19937& random) {
  TestContext ctx;
  for (const int64_t n : kSizes) {
    Array<S> x({n}, random, 100);
    Array<D> y({n});
    const View source = x.view(), destination = y.view();
    REQUIRE(copy_kernel(ctx, {.source = &source, .destination = &destination}) == 0);
    for (int64_t i = 0; i < n; ++i) {
      double want = x[i];
      if constexpr (std::is_integral_v<D> && !std::is_integral_v<S>) {
        want = std::trunc(want);
        if (std::is_same_v<D, uint8_t>) want = std::max(want, 0.0);
      } else {
        want = to_double(from_double<D>(want));
      }
      if (y[i] != want) {
        FAIL_CHECK("dtype ", dtype_of<S>(), " -> ", dtype_of<D>(), " index ", i, ": ", y[i],
                   " for ", want);
        return;
      }
    }
  }
}

TEST_CASE_TEMPLATE("copy converts between all dtypes", S, float, bf16, f16, double, int32_t,
                   int64_t) {
  std::mt19937 random(1);
  check_cast<S, float>(random);
  check_cast<S, bf16>(random);
  check_cast<S, f16>(random);
  check_cast<S, double>(random);
  check_cast<S, int32_t>(random);
  check_cast<S, int64_t>(random);
  if constexpr (!std::is_integral_v<S>) check_cast<S, uint8_t>(random);
}

TEST_CASE("a float becomes an integer by truncation that saturates; NaN becomes 0") {
  TestContext ctx;
  Array<double> x({6}, {1.9, -1.9, 1e30, -1e30, kNan, 2147483647.0});
  Array<int32_t> y({6});
  const View source = x.view(), destination = y.view();
  REQUIRE(copy_kernel(ctx, {.source = &source, .destination = &destination}) == 0);
  check_close(y, {1, -1, 2147483647.0, -2147483648.0, 0, 2147483647.0}, 0);
}

TEST_CASE_TEMPLATE("copy walks permuted, broadcast and tiled views", T, float, bf16, int64_t) {
  TestContext ctx(3);
  std::mt19937 random(2);
  Array<T> x({5, 33, 67}, random, 50);
  for (const auto& order : std::vector<std::vector<int>>{
           {0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}) {
    const View source = permuted(x.view(), order);
    Array<T> y({source.shape[0], source.shape[1], source.shape[2]});
    const View destination = y.view();
    REQUIRE(copy_kernel(ctx, {.source = &source, .destination = &destination}) == 0);
    check_close(y, read<T>(source), 0);
  }
  Array<T> row({1, 33, 1}, random, 50);
  const View wide = expanded(row.view(), {5, 33, 67});
  Array<T> y({5, 33, 67});
  const View destination = y.view();
  REQUIRE(copy_kernel(ctx, {.source = &wide, .destination = &destination}) == 0);
  check_close(y, read<T>(wide), 0);
}

template <typename T>
void check_binary(const View& a, const View& b, double tolerance) {
  std::vector<int64_t> shape(a.shape, a.shape + a.ndim);
  const std::vector<double> x = read<T>(a), z = read<T>(b);
  for (int op = BALORA_ADD; op <= BALORA_MINIMUM; ++op) {
    if (std::is_integral_v<T> && (op == BALORA_DIV || op == BALORA_POW)) continue;
    Array<T> first(shape), second(shape);
    const View y1 = first.view(), y2 = second.view();
    TestContext one(1), three(3);
    REQUIRE(binary_kernel(
                one, {.a = &a, .b = &b, .y = &y1, .op = static_cast<balora_binary_op>(op)}) == 0);
    REQUIRE(binary_kernel(
                three, {.a = &a, .b = &b, .y = &y2, .op = static_cast<balora_binary_op>(op)}) == 0);
    std::vector<double> expected;
    for (size_t i = 0; i < x.size(); ++i) expected.push_back(plain(op, x[i], z[i]));
    INFO("op ", op);
    check_close(first, expected, tolerance);
    check_close(second, first.values(), 0);
  }
}

TEST_CASE_TEMPLATE("binary ops: same shape, broadcast, permuted", T, float, bf16, f16, double,
                   int32_t, int64_t) {
  std::mt19937 random(3);
  const double tolerance =
      std::is_integral_v<T> ? 0
                            : 2 * epsilon_of<std::conditional_t<std::is_integral_v<T>, float, T>>();
  const auto positive = [&](std::vector<int64_t> shape) {  // for pow, and no zero divisor
    Array<T> x(std::move(shape), random, 1);
    for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = from_double<T>(std::abs(x[i]) * 3 + 1);
    return x;
  };
  for (const int64_t n : kSizes) {
    Array<T> a = positive({n}), b = positive({n});
    check_binary<T>(a.view(), b.view(), tolerance);
  }
  Array<T> a = positive({3, 31, 33}), row = positive({33}), column = positive({31, 1}),
           scalar = positive({1});
  const std::vector<int64_t> shape{3, 31, 33};
  for (Array<T>* other : {&row, &column, &scalar}) {
    check_binary<T>(a.view(), expanded(other->view(), shape), tolerance);
    check_binary<T>(expanded(other->view(), shape), a.view(), tolerance);
  }
  Array<T> turned = positive({33, 31, 3});
  check_binary<T>(a.view(), permuted(turned.view(), {2, 1, 0}), tolerance);
}

TEST_CASE("maximum and minimum keep a NaN from either side") {
  TestContext ctx;
  Array<float> a({3}, {kNan, 1, 2}), b({3}, {1, kNan, 3}), y({3});
  const View va = a.view(), vb = b.view(), vy = y.view();
  for (const int op : {BALORA_MAXIMUM, BALORA_MINIMUM}) {
    REQUIRE(binary_kernel(
                ctx, {.a = &va, .b = &vb, .y = &vy, .op = static_cast<balora_binary_op>(op)}) == 0);
    CHECK(std::isnan(y[0]));
    CHECK(std::isnan(y[1]));
    CHECK(y[2] == (op == BALORA_MAXIMUM ? 3 : 2));
  }
}

TEST_CASE("binary gradients against central differences; each output alone") {
  TestContext ctx;
  std::mt19937 random(4);
  Array<double> a({123}, random), b({123}, random), dy({123}, random);
  for (int64_t i = 0; i < 123; ++i) {
    a.data()[i] = std::abs(a[i]) + 0.5;
    b.data()[i] += std::copysign(0.2, b[i]);  // a divisor near zero is beyond central differences
  }
  const View va = a.view(), vb = b.view(), vdy = dy.view();
  for (const int op : {BALORA_DIV, BALORA_POW, BALORA_MAXIMUM, BALORA_MINIMUM}) {
    std::vector<double> da_expected, db_expected;
    constexpr double h = 1e-6;
    for (int64_t i = 0; i < 123; ++i) {
      da_expected.push_back(dy[i] * (plain(op, a[i] + h, b[i]) - plain(op, a[i] - h, b[i])) /
                            (2 * h));
      db_expected.push_back(dy[i] * (plain(op, a[i], b[i] + h) - plain(op, a[i], b[i] - h)) /
                            (2 * h));
    }
    Array<double> da({123}), db({123}), alone({123});
    const View vda = da.view(), vdb = db.view(), valone = alone.view();
    REQUIRE(binary_backward_kernel(ctx, {.dy = &vdy,
                                         .a = &va,
                                         .b = &vb,
                                         .da = &vda,
                                         .db = &vdb,
                                         .op = static_cast<balora_binary_op>(op)}) == 0);
    INFO("op ", op);
    check_close(da, da_expected, 1e-6);
    check_close(db, db_expected, 1e-6);
    REQUIRE(binary_backward_kernel(ctx, {.dy = &vdy,
                                         .a = &va,
                                         .b = &vb,
                                         .db = &valone,
                                         .op = static_cast<balora_binary_op>(op)}) == 0);
    check_close(alone, db.values(), 0);
  }
}

TEST_CASE("a tie of maximum halves the gradient; pow at zero is finite") {
  TestContext ctx;
  Array<float> a({2}, {0, 1}), b({2}, {0, 1}), dy({2}, {4, 4}), da({2}), db({2});
  const View va = a.view(), vb = b.view(), vdy = dy.view(), vda = da.view(), vdb = db.view();
  REQUIRE(binary_backward_kernel(
              ctx,
              {.dy = &vdy, .a = &va, .b = &vb, .da = &vda, .db = &vdb, .op = BALORA_MAXIMUM}) == 0);
  check_close(da, {2, 2}, 0);
  check_close(db, {2, 2}, 0);
  REQUIRE(binary_backward_kernel(
              ctx, {.dy = &vdy, .a = &va, .b = &vb, .da = &vda, .db = &vdb, .op = BALORA_POW}) ==
          0);
  check_close(da, {0, 4}, 0);
  check_close(db, {0, 0}, 0);
}

}  // namespace
