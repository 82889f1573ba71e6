// The linears' kernels (kernels/operands/linear.h) for bf16 on tiles: each direction is one walk
// over the rows. Low-rank parts are one more segment of k in the sum of their
// linear (low_rank_segment.h).
#pragma once
#include <cstdint>
#include <span>

#include "kernels/cpu/products/int8.h"
#include "kernels/kernel_table.h"

namespace balora {

// How the products with frozen weights are computed in a forward pass.
struct Int8Form {
  int32_t int8;        // BALORA_INT8_*
  Int8Rows rows = {};  // x, where its codes exist already
};

// Whether the two functions below can run: bf16 throughout, on a CPU with tiles (tiles.h).
bool linear_fits_tiles(const View& input, std::span<const LinearOperands> linears);

// Operands as in linear_forward_kernel and linear_backward_kernel. No row of a result depends on
// the others, whether that is asked for (by_rows) or not.
void linear_forward_tiles(Context* ctx, const View& x, const View* x_adapter,
                          std::span<const LinearOperands> linears, const Int8Form& form,
                          bool by_rows);

struct LinearGradients {
  const View* x;          // null if no da is wanted
  const View* x_adapter;  // null: x
  const View* dx;
  const View* dx_adapter;
  int32_t int8;  // BALORA_INT8_*
};
void linear_backward_tiles(Context* ctx, const LinearGradients& g,
                           std::span<const LinearOperands> linears);

}  // namespace balora
