// The thin products around an adapter, by way of gemm(). Factors are f32 masters (f64 beside f64)
// and never rounded to the activations' type: narrow activations are widened block by block.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/kernel_table.h"

namespace balora {

// A factor W of rank R and where to put x op(W): (k,R), or stored (R,k) and read transposed.
struct Factor {
  const View* w;
  bool transposed;
  double scale;
  void* out;  // (m,R) dense, f32 (f64 for f64)

  int64_t rank() const { return w->shape[transposed ? 0 : 1]; }
};

// out = scale * x op(W) for each factor; x (m,k) contiguous; all factors stored alike.
void project(Context* ctx, const View& x, std::span<const Factor> factors);

// out (R,k) = scale * p^T x, or (k,R) = scale * x^T p if `transposed`. p (m,R), x (m,k), out
// contiguous.
void contract(Context* ctx, const View& x, const void* p, int64_t rank, double scale,
              const View& out, bool transposed);

}  // namespace balora
