#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "tensor/dtype.h"

using namespace balora;

TEST_CASE("bf16: every value survives, rounding goes to even, NaN stays NaN") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const bf16 value{static_cast<uint16_t>(bits)};
    const float wide = to_float(value);
    if (std::isnan(wide)) {
      CHECK(std::isnan(to_float(to_bf16(wide))));
    } else {
      CHECK(to_bf16(wide).bits == bits);
    }
  }
  CHECK(to_float(to_bf16(1.0f + 0x1p-8f)) == 1.0f);                // tie, to even
  CHECK(to_float(to_bf16(1.0f + 3 * 0x1p-8f)) == 1.0f + 0x1p-6f);  // tie, to even
  CHECK(std::isinf(to_float(to_bf16(std::numeric_limits<float>::max()))));
}

TEST_CASE("f16: every value survives, subnormals and overflow included") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 value{static_cast<uint16_t>(bits)};
    const float wide = to_float(value);
    if (std::isnan(wide)) {
      CHECK(std::isnan(to_float(to_f16(wide))));
    } else {
      CHECK(to_f16(wide).bits == bits);
    }
  }
  CHECK(to_float(to_f16(65519.0f)) == 65504.0f);
  CHECK(std::isinf(to_float(to_f16(65520.0f))));
  CHECK(to_float(to_f16(0x1p-25f)) == 0.0f);  // tie with zero, to even
  CHECK(to_float(to_f16(0x1.8p-25f)) == 0x1p-24f);
  CHECK(to_float(to_f16(1.0f + 0x1p-11f)) == 1.0f);  // tie, to even
}
