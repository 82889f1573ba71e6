// The thin products around an adapter, by way of gemm(). Factors are f32 masters (f64 beside f64)
// and never rounded to the activations' type: narrow activations are widened block by block.
#pragma once
#include <cstdint>

#include "kernels/cpu/products/gemm.h"
#include "kernels/kernel_table.h"

namespace balora {

// A contiguous view of any type.
void fill_zero(const View& view);

// out (m,columns) = x op(w), w (k,columns), or stored (columns,k) and read
// transposed; x (m,k) contiguous. by_rows: by row_product(), for a w that is read transposed.
void project(Context* ctx, const View& x, const GemmInput& w, int64_t columns,
             const GemmOutput& out, bool by_rows = false);

// p (m,R), rows ld apart, in the type of the factors.
struct LeftOperand {
  const void* data;
  int64_t ld, rank;
};

// out (R,k) = scale * p^T x, or (k,R) = scale * x^T p if `transposed`. x (m,k), out contiguous.
void contract(Context* ctx, const View& x, const LeftOperand& p, double scale, const View& out,
              bool transposed);

}  // namespace balora
