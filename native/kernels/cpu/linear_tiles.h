// The linears' kernels (kernels/linear.h) for bf16 on tiles: each direction is one walk over the
// rows.
//
// A low-rank part is one more stretch of k in its linear's sum. With u = u_hi + u_lo and b = b_hi +
// b_lo (16 bits each in bf16 pairs) it is u_hi b_hi + u_lo b_hi + u_hi b_lo: three times R; what is
// left out is below 2^-16 of it. Two neighbouring parts of equal rank are interleaved, one on the
// even k and one on the odd: AMX sums those apart and AVX512-BF16 adds one right after the other,
// so parts that are each other's negative cancel to an exact zero (a PiSSA pair before its first
// step).
#pragma once
#include <cstdint>
#include <span>

#include "kernels/kernel_table.h"

namespace balora {

// Whether the two functions below can run: bf16 throughout, on a CPU with tiles (tiles.h).
bool linear_fits_tiles(const View& input, std::span<const LinearOperands> linears);

// Operands as in linear_forward_kernel and linear_backward_kernel.
void linear_forward_tiles(Context* ctx, const View& x, const View* x_adapter,
                          std::span<const LinearOperands> linears,
                          std::span<const LowRankOperands> parts);

struct LinearGradients {
  const View* x;          // null if no da is wanted
  const View* x_adapter;  // null: x
  const View* dx;
  const View* dx_adapter;
};
void linear_backward_tiles(Context* ctx, const LinearGradients& g,
                           std::span<const LinearOperands> linears,
                           std::span<const LowRankOperands> parts);

}  // namespace balora
