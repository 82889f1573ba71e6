// compare, where and is_finite on the device give the CPU's bits: every type, strided and broadcast
// operands, null operands of where, NaN.
#include <limits>

#include "kernels/shared/op_codes.h"
#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Small whole numbers, so that some are equal.
template <typename T>
Array small(DeviceTest& t, std::vector<int64_t> shape) {
  const Array x = t.empty<T>(std::move(shape));
  for (int64_t i = 0; i < x->size(); ++i) x->set(i, static_cast<double>(t.generator()() % 5));
  return x;
}

TEST_CASE_TEMPLATE("compare", T, BALORA_FLOAT_TYPES, int32_t, int64_t, uint8_t) {
  for (int op = BALORA_EQUAL; op <= BALORA_GREATER_EQUAL; ++op) {
    DeviceTest t;
    const Array a = small<T>(t, {31, 33}), b = small<T>(t, {33, 31}), c = small<T>(t, {1, 33});
    if (!std::is_integral_v<T>) a->set(7, kNan);
    const Array y = t.empty<uint8_t>({31, 33}), z = t.empty<uint8_t>({31, 33});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      const View turned = permuted(*view(b), {1, 0}), row = expanded(*view(c), {31, 33});
      return call(k.compare, ctx,
                  {.a = view(a),
                   .b = &turned,
                   .y = view(y),
                   .op = static_cast<balora_compare_op>(op)}) |
             call(
                 k.compare, ctx,
                 {.a = view(a), .b = &row, .y = view(z), .op = static_cast<balora_compare_op>(op)});
    });
    t.check_equal(y);
    t.check_equal(z);
  }
}

TEST_CASE_TEMPLATE("where", T, BALORA_FLOAT_TYPES, int32_t, int64_t, uint8_t) {
  for (const int given : {0, 1, 2, 3}) {
    DeviceTest t;
    const Array condition = small<uint8_t>(t, {1, 33}), a = small<T>(t, {33, 31}),
                b = small<T>(t, {31, 1}), y = t.empty<T>({31, 33});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      const View choose = expanded(*view(condition), {31, 33});
      const View first = permuted(*view(a), {1, 0}), second = expanded(*view(b), {31, 33});
      return call(k.where, ctx,
                  {.condition = &choose,
                   .a = given & 1 ? &first : nullptr,
                   .b = given & 2 ? &second : nullptr,
                   .y = view(y)});
    });
    t.check_equal(y);
  }
  DeviceTest t;
  const Array none = t.empty<uint8_t>({0}), x = t.empty<T>({0});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.where, ctx, {.condition = view(none), .a = view(x), .b = view(x), .y = view(x)});
  });
}

TEST_CASE_TEMPLATE("is_finite", T, BALORA_FLOAT_TYPES) {
  DeviceTest t;
  const Array x = t.random<T>({1500}), y = t.empty<uint8_t>({1500});
  x->set(0, kNan);
  x->set(31, kInf);
  x->set(1499, -kInf);
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.is_finite, ctx, {.x = view(x), .y = view(y)});
  });
  t.check_equal(y);
}

}  // namespace
