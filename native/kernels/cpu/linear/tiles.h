// The linears' kernels (kernels/operands/linear.h) for bf16 on tiles: each direction is one walk
// over the rows. Low-rank parts are one more segment of k in the sum of their linear (pair.h).
#pragma once
#include <cstdint>
#include <span>

#include "kernels/cpu/products/int8.h"
#include "kernels/kernel_table.h"

namespace balora {

// The linears of a call.
template <typename O>
std::span<const LinearOperands> linears_of(const O& o) {
  return {o.linears, static_cast<size_t>(o.count)};
}
// The rows of a backward call, whose unused outputs have no gradient.
inline int64_t rows_of(const balora_linear_backward& o) {
  for (const LinearOperands& linear : linears_of(o)) {
    if (linear.y) return linear.y->shape[0];
  }
  return 0;
}
// The codes of x, where they exist already.
inline Int8Rows codes_of(const balora_linear_forward& o) {
  if (!o.x_codes) return {};
  return {static_cast<const uint8_t*>(o.x_codes->data), o.x_codes->shape[1],
          static_cast<const float*>(o.x_scales->data)};
}

// Whether the two functions below can run where tiles are (tiles.h): bf16 throughout.
bool linear_fits_tiles(const View& input, std::span<const LinearOperands> linears);

// No row of a result depends on the others, whether that is asked for or not.
void linear_forward_tiles(Context* ctx, const balora_linear_forward& o);
void linear_backward_tiles(Context* ctx, const balora_linear_backward& o);

}  // namespace balora
