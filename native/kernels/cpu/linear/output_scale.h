// The output scale of a linear (balora_linear): y = output_scale * sum + bias, where the sum of the
// base and the parts is f32 (f64 for f64) until y is rounded.
#pragma once
#include "kernels/kernel_table.h"

namespace balora {

// Where the sum of a linear with an output scale goes: y itself if it is as wide as the sum, else
// scratch in f32.
View sum_before_scale(Context* ctx, const LinearOperands& linear);

// Writes y, and `unscaled` where it is wanted, from that sum.
void apply_output_scale(Context* ctx, const LinearOperands& linear, const View& sum);

}  // namespace balora
