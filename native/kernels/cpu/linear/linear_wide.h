// The linears' kernels (kernels/operands/linear.h) by way of gemm(), for every type: factors are
// the f32 masters (f64 beside f64), never rounded. The low-rank columns of all linears stand side
// by side in one matrix, so that x is read once and each sum takes them as one product.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/cpu/linear/linear_tiles.h"

namespace balora {

// Operands as in linear_forward_kernel and linear_backward_kernel. by_rows: no row of a result
// depends on the others (products/row_product.h).
void linear_forward_wide(Context* ctx, const View& x, const View* x_adapter,
                         std::span<const LinearOperands> linears, const Int8Form& form,
                         bool by_rows);
void linear_backward_wide(Context* ctx, const LinearGradients& g,
                          std::span<const LinearOperands> linears);

}  // namespace balora
