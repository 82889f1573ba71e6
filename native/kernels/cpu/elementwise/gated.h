// Gated activations (gated.cc).
#pragma once
#include <cstdint>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/kernel_table.h"

namespace balora {

constexpr int64_t kGatedGrain = 4;  // rows

// Row n of an operand starts at data + n * stride.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  explicit Rows(const View* v) : data(data_of<T>(v)), stride(v ? v->stride[0] : 0) {}
  BALORA_INLINE T* operator[](int64_t n) const { return data + n * stride; }
};

namespace x86 {

// SiLU and rows of bf16, in AVX512-BF16 instructions.
void swiglu_forward(Context* ctx, const balora_gated_forward& o);
void swiglu_backward(Context* ctx, const balora_gated_backward& o);

}  // namespace x86
}  // namespace balora
