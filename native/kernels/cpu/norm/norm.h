// RMSNorm (norm.cc).
#pragma once
#include "kernels/kernel_table.h"

namespace balora {

namespace x86 {

// Rows of bf16 in AVX512-BF16 instructions, with a residual or without; backward for dx alone.
void rms_norm_forward(Context* ctx, const balora_rms_norm_add_forward& o);
void rms_norm_backward(Context* ctx, const balora_rms_norm_backward& o);

}  // namespace x86
}  // namespace balora
