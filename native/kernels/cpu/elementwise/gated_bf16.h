// SwiGLU on rows of bf16 (gated.cc) in AVX512-BF16 instructions. Only where tiles_ready().
#pragma once
#include <cstdint>

#include "tensor/dtype.h"

namespace balora {

// y = silu(gate) * up
void swiglu_row_bf16(const bf16* gate, const bf16* up, bf16* y, int64_t width);
// dgate = dy * up * silu'(gate)
// dup = dy * silu(gate)
void swiglu_backward_row_bf16(const bf16* dy, const bf16* gate, const bf16* up, bf16* dgate,
                              bf16* dup, int64_t width);

}  // namespace balora
