// C (m,n) = sum_t alpha_t A_t B_t + bias, accumulated in f32 (f64 for f64) and rounded once: a
// frozen linear with its low-rank parts, or the gradient of an input that several linears share. A
// frozen B is packed on first use and kept in its tensor's slots, one layout a direction, for every
// later product.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/int8.h"
#include "kernels/kernel_table.h"

namespace balora {

// A (m,k), rows lda elements apart. B (k,n), or stored (n,k) and read transposed; contiguous if it
// is frozen. With a copy of B in int8 the product is one of int8.h, of int8_rows where they are
// there and of A's rows otherwise, which are contiguous; alpha is 1 then.
struct ProductTerm {
  const void* a;
  int32_t a_dtype;
  int64_t lda;
  const View* b;
  bool transposed = false;
  double alpha = 1;
  const Int8Weight* int8 = nullptr;
  Int8Rows int8_rows = {};

  int64_t k() const { return b->shape[transposed ? 1 : 0]; }
};

// bias (n) may be null; accumulate adds to what C holds. by_rows: no row of C depends on the others
// (row_product.h); every B is then read transposed, of A's type or both f32 or f64, and alpha is 1.
struct ProductSum {
  int64_t m, n;
  std::span<const ProductTerm> terms;
  const View* bias = nullptr;
  bool accumulate = false;
  bool by_rows = false;
};

void sum_products(Context* ctx, const ProductSum& sum, const GemmOutput& c);

}  // namespace balora
