// fill and arange on the device against the CPU, every dtype, odd sizes.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check_fill() {
  for (const int64_t n : {int64_t{1}, int64_t{31}, int64_t{33}, int64_t{12345}}) {
    CAPTURE(n);
    DeviceTest t;
    const Array y = t.empty<T>({n}), z = t.empty<T>({n});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.fill, ctx, {.y = view(y), .value = 3.3}) |
             call(k.arange, ctx, {.y = view(z), .start = 2, .step = 0.5});
    });
    t.check_equal(y);
    t.check_equal(z);
  }
}

TEST_CASE_TEMPLATE("fill and arange give the CPU's bits in every dtype", T, BALORA_FLOAT_TYPES,
                   int32_t, int64_t, uint8_t) {
  check_fill<T>();
}

}  // namespace
