// Rows of activations in int8 (balora_quantize_rows) as every device has them: their sizes, their
// rotation, and the code of a value.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/shared/host_device.h"

namespace balora {

constexpr int64_t kInt8MostTerms = 131072;  // of a sum of products of codes in 32 bits

constexpr int64_t kInt8Rows = 32;  // codes have a multiple of so many rows
constexpr int64_t kInt8K = 64;     // and of so many columns
constexpr int32_t kInt8ZeroPoint = 128;
constexpr float kInt8LargestCode = 127;
constexpr float kInt8LeastScaled = 0x1p-120F;  // rows whose values are all below it are zeros

BALORA_HOST_DEVICE int64_t int8_padded_rows(int64_t rows) {
  return (rows + kInt8Rows - 1) / kInt8Rows * kInt8Rows;
}
BALORA_HOST_DEVICE int64_t int8_padded_columns(int64_t columns) {
  return (columns + kInt8K - 1) / kInt8K * kInt8K;
}

// Inputs of a block of the rotation R of rows of this width: 64, 32, or 0, which is none.
BALORA_HOST_DEVICE int64_t int8_rotation(int64_t width) {
  if (width % 64 == 0) return 64;
  return width % 32 == 0 ? 32 : 0;
}

// The code of a value times 127 / max, plus 128: half to even, never -128.
BALORA_HOST_DEVICE uint8_t int8_code(float scaled) {
  constexpr auto kMost = static_cast<int32_t>(kInt8LargestCode);
  const auto code = static_cast<int32_t>(::rintf(scaled));
  const int32_t least = code < -kMost ? -kMost : code;
  return static_cast<uint8_t>((least > kMost ? kMost : least) + kInt8ZeroPoint);
}

}  // namespace balora
