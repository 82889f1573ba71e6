// Rows in int8 on the device: codes, scales and values are the CPU's bit for bit (which
// test/native/kernels/products/int8_test.cc compares with the formula), in every rotation, for odd
// sizes, rows of zeros, and rows that are not finite.
#include "kernels/shared/int8_rows.h"

#include <limits>

#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check(int64_t rows, int64_t width) {
  CAPTURE(rows);
  CAPTURE(width);
  DeviceTest t;
  const Array x = t.random<T>({rows, width}, 3);
  if (rows > 2) {
    for (int64_t i = 0; i < width; ++i) x->set(i, 0);
    x->set(2 * width - 1, std::numeric_limits<double>::infinity());
    x->set(2 * width, std::numeric_limits<double>::quiet_NaN());
  }
  const Array codes = t.empty<uint8_t>({int8_padded_rows(rows), int8_padded_columns(width)});
  const Array scales = t.empty<float>({int8_padded_rows(rows)}), again = t.empty<T>({rows, width});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.quantize_rows, ctx, {.x = view(x), .codes = view(codes), .scales = view(scales)});
  });
  t.check_equal(codes);
  t.check_equal(scales);
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.dequantize_rows, ctx,
                {.codes = view(codes), .scales = view(scales), .x = view(again)});
  });
  t.check_equal(again);
}

TEST_CASE_TEMPLATE("rows in int8 and back", T, float, bf16, f16) {
  check<T>(1, 1);
  check<T>(5, 31);
  check<T>(33, 96);
  check<T>(4, 576);
  check<T>(3, 2112);
}

TEST_CASE("rows in int8 are not of f64") {
  DeviceTest t;
  const Array x = t.random<double>({2, 64}), codes = t.empty<uint8_t>({32, 64});
  const Array scales = t.empty<float>({32});
  const auto quantize = [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.quantize_rows, ctx, {.x = view(x), .codes = view(codes), .scales = view(scales)});
  };
  CHECK(t.on_device(quantize) != 0);
  CHECK(t.error() == "rows of f64 are not quantised to int8");
  const auto dequantize = [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.dequantize_rows, ctx,
                {.codes = view(codes), .scales = view(scales), .x = view(x)});
  };
  CHECK(t.on_device(dequantize) != 0);
  CHECK(t.error() == "rows in int8 have no values in f64");
}

}  // namespace
