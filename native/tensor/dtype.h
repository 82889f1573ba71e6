// Element types and their host representations. bf16 and f16 are storage formats: arithmetic
// happens in f32.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "tensor/view.h"

namespace balora {

enum class DType : int32_t {
  kF32 = BALORA_F32,
  kBF16 = BALORA_BF16,
  kF16 = BALORA_F16,
  kF64 = BALORA_F64,
  kI32 = BALORA_I32,
  kI64 = BALORA_I64,
  kU8 = BALORA_U8,
};

constexpr int kDTypeCount = 7;

constexpr int64_t dtype_size(DType dtype) {
  constexpr int64_t sizes[kDTypeCount] = {4, 2, 2, 8, 4, 8, 1};
  return sizes[static_cast<int>(dtype)];
}

constexpr const char* dtype_name(DType dtype) {
  constexpr const char* names[kDTypeCount] = {"f32", "bf16", "f16", "f64", "i32", "i64", "u8"};
  return names[static_cast<int>(dtype)];
}

constexpr bool is_float(DType dtype) {
  return static_cast<int>(dtype) <= BALORA_F64;
}

// The type in which sums over values of `dtype` are kept: f64 for f64, else f32.
constexpr DType accumulator_dtype(DType dtype) {
  return dtype == DType::kF64 ? DType::kF64 : DType::kF32;
}

// The narrowest float type that holds the values of both.
constexpr DType common_float(DType a, DType b) {
  if (a == b) return a;
  return a == DType::kF64 || b == DType::kF64 ? DType::kF64 : DType::kF32;
}

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Round to nearest even; a NaN stays a NaN (its top payload bit is set so that truncation cannot
// make an infinity).
inline bf16 to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}

// IEEE half precision without hardware support, and without subnormal f32 numbers, which the
// compute threads take as zero.
inline float to_float(f16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  if ((value.bits & 0x7c00u) == 0x7c00u)
    return std::bit_cast<float>(sign | 0x7f800000u | magnitude);
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude >> 13)) * 0x1p-24f;
  const uint32_t rebased = magnitude + (uint32_t{112} << 23);
  const bool is_normal = (value.bits & 0x7c00u) != 0;
  return std::bit_cast<float>(sign | (is_normal ? rebased : std::bit_cast<uint32_t>(subnormal)));
}

inline f16 to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // subnormal: let the f32 adder round at the half's last place
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace balora
