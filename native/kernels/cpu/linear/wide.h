// The linears' kernels (kernels/operands/linear.h) by way of gemm(), for every type: factors are
// the f32 masters (f64 beside f64), never rounded. The low-rank columns of all linears stand side
// by side in one matrix, so that x is read once and each sum takes them as one product.
#pragma once
#include <cstdint>

#include "kernels/cpu/linear/tiles.h"

namespace balora {

void linear_forward_wide(Context* ctx, const balora_linear_forward& o);
void linear_backward_wide(Context* ctx, const balora_linear_backward& o);

}  // namespace balora
