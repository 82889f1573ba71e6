// g += X^T X for X = diag(scale) a: second moments of many rows, for which f32's products are
// precise enough and sums over all rows are not. Products of f32, or of bf16 as they are where the
// CPU multiplies these and many rows in a row have one scale, are summed in f32 over blocks of at
// most 256 rows, and the blocks in f64.
#pragma once
#include "kernels/kernel_table.h"

namespace balora {

// a (N,C) in any float dtype; one of f64 is multiplied and summed in f64.
void add_scaled_gram(Context* ctx, const View& a, const float* scale, double* g);

}  // namespace balora
