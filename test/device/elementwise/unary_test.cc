// Elementwise functions and their slopes on the device against the CPU, every function and type.
#include <limits>

#include "kernels/shared/op_codes.h"
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

bool is_positive(int op) {
  return op == BALORA_LOG || op == BALORA_SQRT || op == BALORA_RSQRT;
}

template <typename T>
constexpr double kTolerance = 2 * epsilon_of<T>() + (std::is_same_v<T, double> ? 4e-15 : 1e-6);

template <typename T>
void check_function(int op, int64_t n) {
  CAPTURE(op);
  CAPTURE(n);
  DeviceTest t;
  const Array x = t.random<T>({n}, 5), dy = t.random<T>({n}), y = t.empty<T>({n}),
              dx = t.empty<T>({n});
  for (int64_t i = 0; is_positive(op) && i < n; ++i) x->set(i, std::abs(x->host(i)) + 0.25);
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    // x stands for what is saved, whichever it is.
    return call(k.unary, ctx,
                {.x = view(x),
                 .y = view(y),
                 .op = static_cast<balora_unary_op>(op),
                 .a = -1.25,
                 .b = 2}) |
           call(k.unary_backward, ctx,
                {.dy = view(dy),
                 .saved = view(x),
                 .dx = view(dx),
                 .op = static_cast<balora_unary_op>(op),
                 .a = -1.25,
                 .b = 2});
  });
  t.check_close(y, kTolerance<T>);
  t.check_close(dx, 8 * kTolerance<T>);
}

TEST_CASE_TEMPLATE("functions and slopes agree with the CPU", T, BALORA_FLOAT_TYPES) {
  for (int op = BALORA_NEG; op < BALORA_UNARY_OPS; ++op) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, int64_t{2500}}) {
      check_function<T>(op, n);
    }
  }
}

TEST_CASE("functions keep NaN, infinities and far tails") {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  DeviceTest t;
  const std::vector<double> values{
      std::numeric_limits<double>::quiet_NaN(), kInf, -kInf, 0, -0.0, 100, -100, 1e-30, -1e-30};
  const auto n = static_cast<int64_t>(values.size());
  const Array x = t.values<float>({n}, values), y = t.empty<float>({n});
  for (int op = BALORA_NEG; op < BALORA_UNARY_OPS; ++op) {
    CAPTURE(op);
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(
          k.unary, ctx,
          {.x = view(x), .y = view(y), .op = static_cast<balora_unary_op>(op), .a = -1.25, .b = 2});
    });
    t.check_close(y, 1e-6);
  }
}

TEST_CASE("a function that is not known is an error") {
  DeviceTest t;
  const Array x = t.random<float>({3}), y = t.empty<float>({3});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(
        k.unary, ctx,
        {.x = view(x), .y = view(y), .op = static_cast<balora_unary_op>(99), .a = 0, .b = 0});
  }) != 0);
  CHECK(t.error().find("99") != std::string::npos);
}

}  // namespace
