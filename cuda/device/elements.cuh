// Element types on the device: one rounding on the way out, and packs of neighbours that move in
// one access.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "device/instructions.cuh"
#include "kernels/kernel_table.h"
#include "kernels/shared/dispatch.h"
#include "kernels/shared/host_device.h"
#include "tensor/view.h"

namespace balora::cuda {

__host__ __device__ inline float bits_to_float(uint32_t bits) {
  union {
    uint32_t u;
    float f;
  } both{bits};
  return both.f;
}
__host__ __device__ inline uint32_t float_to_bits(float value) {
  union {
    float f;
    uint32_t u;
  } both{value};
  return both.u;
}

__device__ inline float load(float value) {
  return value;
}
__device__ inline double load(double value) {
  return value;
}
__device__ inline float load(bf16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ inline float load(f16 value) {
  return half_to_float(value.bits);
}
__device__ inline int32_t load(int32_t value) {
  return value;
}
__device__ inline int64_t load(int64_t value) {
  return value;
}
__device__ inline uint8_t load(uint8_t value) {
  return value;
}

// One rounding, to nearest even.
template <typename T>
__device__ inline T store(Acc<T> value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return {float_to_bf16(value)};
  } else if constexpr (std::is_same_v<T, f16>) {
    return {float_to_half(value)};
  } else {
    return static_cast<T>(value);
  }
}

// K neighbours moved in one access of K * sizeof(T) bytes; the address must be a multiple of that.
template <typename T, int K>
struct alignas(sizeof(T) * K) Pack {
  T at[K];
};
// Elements of T in a 16-byte access.
template <typename T>
constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

template <typename T>
bool aligned16(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

}  // namespace balora::cuda
