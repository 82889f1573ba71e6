// Products x W^T whose rows do not depend on each other: row i of C is the same bit for bit
// whichever rows stand beside it, and however many threads there are. gemm() and packed weights
// choose the order of their sums by the number of rows. W is read as it lies and nothing of it is
// kept, so with few rows the product runs at the speed of memory.
#pragma once
#include "kernels/cpu/products/gemm.h"

namespace balora {

// C (m,n) = A B^T + beta C for A (m,k), and B stored (n,k), of one type; C f32, f64 for f64; beta 0
// or 1.
void row_product(Context* ctx, const GemmShape& shape, const GemmInput& a, const GemmInput& b,
                 const GemmOutput& c, double beta);

}  // namespace balora
