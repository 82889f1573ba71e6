// The element types of tests, on the CPU and on devices: their dtypes and machine epsilons,
// conversions from and to double, and views of arrays of them. Acc<T> is the type of arithmetic.
#pragma once
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/shared/dispatch.h"
#include "tensor/dtype.h"
#include "tensor/view.h"

namespace balora::test {

template <typename T>
constexpr int32_t dtype_of() {
  if constexpr (std::is_same_v<T, float>) return BALORA_F32;
  if constexpr (std::is_same_v<T, bf16>) return BALORA_BF16;
  if constexpr (std::is_same_v<T, f16>) return BALORA_F16;
  if constexpr (std::is_same_v<T, double>) return BALORA_F64;
  if constexpr (std::is_same_v<T, int32_t>) return BALORA_I32;
  if constexpr (std::is_same_v<T, int64_t>) return BALORA_I64;
  if constexpr (std::is_same_v<T, uint8_t>) return BALORA_U8;
}

// Machine epsilon of the storage type.
template <typename T>
constexpr double epsilon_of() {
  if constexpr (std::is_same_v<T, bf16>) return 0x1p-8;
  if constexpr (std::is_same_v<T, f16>) return 0x1p-11;
  if constexpr (std::is_same_v<T, float>) return 0x1p-24;
  return 0x1p-53;
}

template <typename T>
double to_double(T value) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>)
    return to_float(value);
  else
    return static_cast<double>(value);
}

template <typename T>
T from_double(double value) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(static_cast<float>(value));
  else if constexpr (std::is_same_v<T, f16>)
    return to_f16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

// A view of a contiguous array.
inline View contiguous_view(void* data, int32_t dtype, const std::vector<int64_t>& shape) {
  View v{};
  v.data = data;
  v.ndim = static_cast<int32_t>(shape.size());
  v.dtype = dtype;
  int64_t step = 1;
  for (int32_t i = v.ndim - 1; i >= 0; --i) {
    v.shape[i] = shape[static_cast<size_t>(i)];
    v.stride[i] = step;
    step *= v.shape[i];
  }
  return v;
}

}  // namespace balora::test
