// Gated activations on the device against the CPU: every activation and type, halves of one fused
// array, widths that fit no group, rows of one element.
#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check_gated(int64_t rows, int64_t width, int32_t activation) {
  CAPTURE(width);
  CAPTURE(activation);
  DeviceTest t;
  const Array fused = t.random<T>({rows, 2 * width}, 6), dy = t.random<T>({rows, width}),
              y = t.empty<T>({rows, width}), dfused = t.empty<T>({rows, 2 * width});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    const auto half = [&](const Array& a, int64_t which) {
      return narrow(*view(a), 1, which * width, width);
    };
    const View gate = half(fused, 0), up = half(fused, 1), dgate = half(dfused, 0),
               dup = half(dfused, 1);
    return call(k.gated_forward, ctx,
                {.gate = &gate,
                 .up = &up,
                 .y = view(y),
                 .activation = static_cast<balora_activation>(activation)}) |
           call(k.gated_backward, ctx,
                {.dy = view(dy),
                 .gate = &gate,
                 .up = &up,
                 .dgate = &dgate,
                 .dup = &dup,
                 .activation = static_cast<balora_activation>(activation)});
  });
  const double tolerance = 2 * epsilon_of<T>() + (std::is_same_v<T, double> ? 4e-15 : 1e-6);
  t.check_close(y, tolerance);
  t.check_close(dfused, 4 * tolerance);
}

TEST_CASE_TEMPLATE("gated activations agree with the CPU", T, BALORA_FLOAT_TYPES) {
  for (const int32_t activation : {0, 1, 2}) {
    check_gated<T>(0, 8, activation);
    check_gated<T>(5, 0, activation);
    check_gated<T>(7, 1, activation);
    check_gated<T>(3, 31, activation);
    check_gated<T>(3, 33, activation);
    check_gated<T>(9, 64, activation);
    check_gated<T>(2, 1032, activation);
  }
}

}  // namespace
