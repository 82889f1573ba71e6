// binary and binary_backward on the device against the CPU: every op and type, equal, broadcast,
// permuted, narrow and empty operands, null gradients, NaN.
#include <limits>

#include "kernels/shared/op_codes.h"
#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// How the two operands are laid out.
struct Layout {
  std::vector<int64_t> a, b, shape;
  std::vector<int32_t> turn;  // of b's dimensions, before it is expanded
};
const std::vector<Layout> kLayouts{
    {{1}, {1}, {1}, {0}},
    {{0, 5}, {0, 5}, {0, 5}, {0, 1}},
    {{1031}, {1031}, {1031}, {0}},
    {{5, 64}, {1, 64}, {5, 64}, {0, 1}},
    {{1, 1}, {9, 40}, {9, 40}, {0, 1}},
    {{33, 1}, {33, 123}, {33, 123}, {0, 1}},
    {{4, 33, 24}, {24, 33, 4}, {4, 33, 24}, {2, 1, 0}},
};

template <typename T>
double tolerance_of() {
  return std::is_integral_v<T> ? 0 : 2 * epsilon_of<T>() + 1e-15;
}

// Values that no op turns into an overflow or a NaN: pow takes a positive base.
template <typename T>
Array operand(DeviceTest& t, const std::vector<int64_t>& shape, bool positive) {
  const Array x = t.random<T>(shape, std::is_integral_v<T> ? 50 : 2);
  for (int64_t i = 0; positive && i < x->size(); ++i) x->set(i, std::abs(x->host(i)) + 0.25);
  return x;
}

template <typename T>
void check_binary(const Layout& layout, int op) {
  CAPTURE(op);
  DeviceTest t;
  const Array a = operand<T>(t, layout.a, op == BALORA_POW),
              b = operand<T>(t, layout.b, op == BALORA_DIV), y = t.empty<T>(layout.shape);
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    const View left = expanded(*view(a), layout.shape);
    const View right = expanded(permuted(*view(b), layout.turn), layout.shape);
    return call(k.binary, ctx,
                {.a = &left, .b = &right, .y = view(y), .op = static_cast<balora_binary_op>(op)});
  });
  t.check_close(y, tolerance_of<T>());
}

TEST_CASE_TEMPLATE("binary ops agree with the CPU", T, BALORA_FLOAT_TYPES, int32_t, int64_t) {
  for (const Layout& layout : kLayouts) {
    for (int op = BALORA_ADD; op <= BALORA_MINIMUM; ++op) {
      if (std::is_integral_v<T> && (op == BALORA_DIV || op == BALORA_POW)) continue;
      check_binary<T>(layout, op);
    }
  }
}

TEST_CASE("integers wrap around and a NaN on either side wins") {
  DeviceTest t;
  const Array a = t.values<int32_t>({3}, {2147483647, -2147483648.0, 65536});
  const Array b = t.values<int32_t>({3}, {1, 1, 65537}), y = t.empty<int32_t>({3});
  const Array x = t.values<float>({3}, {kNan, 1, 2}), z = t.values<float>({3}, {1, kNan, 1});
  const Array w = t.empty<float>({3});
  for (int op = BALORA_ADD; op <= BALORA_MINIMUM; ++op) {
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      if (op != BALORA_DIV && op != BALORA_POW)
        call(k.binary, ctx,
             {.a = view(a), .b = view(b), .y = view(y), .op = static_cast<balora_binary_op>(op)});
      return call(
          k.binary, ctx,
          {.a = view(x), .b = view(z), .y = view(w), .op = static_cast<balora_binary_op>(op)});
    });
    t.check_equal(y);
    t.check_close(w, 1e-7);
  }
}

TEST_CASE("u8 has no arithmetic") {
  DeviceTest t;
  const Array a = t.values<uint8_t>({1}, {1}), y = t.empty<uint8_t>({1});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.binary, ctx, {.a = view(a), .b = view(a), .y = view(y), .op = BALORA_ADD});
  }) != 0);
  CHECK(t.error() == "u8 has no arithmetic");
}

TEST_CASE_TEMPLATE("gradients agree with the CPU", T, BALORA_FLOAT_TYPES) {
  for (const Layout& layout : kLayouts) {
    for (const int op : {BALORA_DIV, BALORA_POW, BALORA_MAXIMUM, BALORA_MINIMUM}) {
      for (const int wanted : {1, 2, 3}) {
        CAPTURE(op);
        DeviceTest t;
        const Array a = operand<T>(t, layout.a, true), b = operand<T>(t, layout.b, true),
                    dy = t.random<T>(layout.shape), da = t.empty<T>(layout.shape),
                    db = t.empty<T>(layout.shape);
        t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
          const View left = expanded(*view(a), layout.shape);
          const View right = expanded(permuted(*view(b), layout.turn), layout.shape);
          return call(k.binary_backward, ctx,
                      {.dy = view(dy),
                       .a = &left,
                       .b = &right,
                       .da = wanted & 1 ? view(da) : nullptr,
                       .db = wanted & 2 ? view(db) : nullptr,
                       .op = static_cast<balora_binary_op>(op)});
        });
        const double tolerance = 2 * epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-14 : 4e-6);
        if (wanted & 1) t.check_close(da, tolerance);
        if (wanted & 2) t.check_close(db, tolerance);
      }
    }
  }
}

TEST_CASE("gradients at ties and at zero") {
  DeviceTest t;
  const Array a = t.values<float>({4}, {1, 0, 0, 2}), b = t.values<float>({4}, {1, 0, 3, 2});
  const Array dy = t.values<float>({4}, {1, 1, 1, 3}), da = t.empty<float>({4}),
              db = t.empty<float>({4});
  for (const int op : {BALORA_POW, BALORA_MAXIMUM, BALORA_MINIMUM}) {
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.binary_backward, ctx,
                  {.dy = view(dy),
                   .a = view(a),
                   .b = view(b),
                   .da = view(da),
                   .db = view(db),
                   .op = static_cast<balora_binary_op>(op)});
    });
    t.check_close(da, 1e-6);
    t.check_close(db, 1e-6);
  }
}

}  // namespace
