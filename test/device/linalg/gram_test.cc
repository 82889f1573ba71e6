// gram on the device against the CPU: every float type, no rows, accumulation, and scales of rows.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check_gram() {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}}) {
    CAPTURE(n);
    DeviceTest t;
    const Array a = t.random<T>({n, 31}), g = t.random<double>({31, 31});
    for (const int32_t accumulate : {0, 1}) {
      // Accumulated onto the (symmetric) result of the first round, on both sides.
      t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.gram, ctx, {.a = view(a), .g = view(g), .accumulate = 0}) ||
               (accumulate && call(k.gram, ctx, {.a = view(a), .g = view(g), .accumulate = 1}));
      });
      t.check_close(g, 1e-14);
    }
    const std::vector<double> values = g->from_device();
    for (size_t i = 0; i < 31; ++i) {
      for (size_t j = 0; j < i; ++j) REQUIRE(values[i * 31 + j] == values[j * 31 + i]);
    }
  }
}

TEST_CASE_TEMPLATE("gram sums in f64 and is symmetric", T, BALORA_FLOAT_TYPES) {
  check_gram<T>();
}

TEST_CASE_TEMPLATE("gram multiplies rows by their scales", T, BALORA_FLOAT_TYPES) {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}}) {
    CAPTURE(n);
    DeviceTest t;
    const Array a = t.random<T>({n, 31}), scale = t.random<float>({n}),
                g = t.random<double>({31, 31});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      const int status =
          call(k.gram, ctx, {.a = view(a), .scale = view(scale), .g = view(g), .accumulate = 0});
      return status ||
             call(k.gram, ctx, {.a = view(a), .scale = view(scale), .g = view(g), .accumulate = 1});
    });
    // The CPU sums up to 33 products of f32 or bf16 in f32.
    t.check_close(g, std::is_same_v<T, double> ? 1e-14 : 33 * 0x1p-24);
  }
}

}  // namespace
