// The head's products in tiles (tiles.h). The head's weight is far larger than any cache and each
// chunk of rows reads all of it, so a block of tokens at a time is packed into scratch and
// multiplied by every operand that wants it while it is there.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/kernel_table.h"
#include "tensor/dtype.h"

namespace balora {

// Whether the products of these hidden states and this head can run in tiles.
bool head_fits_tiles(const View& h, const View& w);

// z (rows,V) f32, rows z_ld apart, = h (rows,C) W^T, rows of h `ld` apart.
struct HeadLogits {
  const bf16* h;
  int64_t ld;
  float* z;
  int64_t z_ld;
};
void head_logits_tiles(Context* ctx, std::span<const HeadLogits> products, int64_t rows,
                       const View& w);

// dh (rows,C) f32 dense = dz (rows,V) W, dz a sum of `parts` whose rows are `ld` apart. The blocks
// of tokens are summed in order.
void head_gradient_tiles(Context* ctx, std::span<const bf16* const> parts, int64_t ld, int64_t rows,
                         const View& w, float* dh);

}  // namespace balora
