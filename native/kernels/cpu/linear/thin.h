// The thin products around an adapter, by way of gemm(). Factors are f32 masters (f64 beside f64)
// and never rounded to the activations' type: narrow activations are widened block by block.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/cpu/products/gemm.h"
#include "kernels/kernel_table.h"

namespace balora {

// A contiguous view of any type.
void fill_zero(const View& view);

// out (m,columns) = x op(w), w (k,columns), or stored (columns,k) and read transposed.
struct Projection {
  GemmInput w;
  int64_t columns;
  GemmOutput out;
};

// p (m,R), rows ld apart, in the type of the factors.
struct LeftOperand {
  const void* data;
  int64_t ld, rank;
};
// out (R,k) = scale * p^T x, or (k,R) = scale * x^T p if `transposed`; contiguous.
struct Contraction {
  LeftOperand p;
  double scale;
  const View* out;
  bool transposed = false;
};

// The products of one x (m,k), contiguous, whose narrow rows are widened once for all of them.
// by_rows: projections by row_product(), for a w that is read transposed. `wide` (m,k), for a
// narrow x, keeps it in f32; null: nothing is kept.
void thin_products(Context* ctx, const View& x, std::span<const Projection> projections,
                   std::span<const Contraction> contractions, bool by_rows = false,
                   float* wide = nullptr);

// The rows [first, first + count) of a contiguous (m,k).
View rows_of(const View& x, int64_t first, int64_t count);

}  // namespace balora
