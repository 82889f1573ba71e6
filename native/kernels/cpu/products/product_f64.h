// Matrix products that accumulate in f64 whatever their operands are stored in: for Gram matrices,
// whose small eigenvalues drown in f32 rounding, and for the dense linear algebra of reference
// precision. oneDNN has no f64 product and a distribution's Eigen is compiled for SSE2; this one
// dispatches at run time like the other kernels.
#pragma once
#include <cstdint>

#include "kernels/kernel_table.h"

namespace balora {

// Element (i,j) stands at data[i * row_stride + j * col_stride]; any float dtype.
struct MatrixRef {
  const void* data;
  int32_t dtype;
  int64_t row_stride;
  int64_t col_stride;

  MatrixRef transposed() const { return {data, dtype, col_stride, row_stride}; }
};

// C (m,n) = alpha A (m,k) B (k,n) + beta C; C is row-major f64 with rows ldc apart, and not read
// for a beta of 0. Uses all of the stream's threads; each element is summed in one fixed order, so
// the thread count does not matter.
void product_f64(const Context* ctx, int64_t m, int64_t n, int64_t k, const MatrixRef& a,
                 const MatrixRef& b, double* c, int64_t ldc, double alpha = 1, double beta = 0);
// C += A B
inline void add_product_f64(const Context* ctx, int64_t m, int64_t n, int64_t k, const MatrixRef& a,
                            const MatrixRef& b, double* c, int64_t ldc) {
  product_f64(ctx, m, n, k, a, b, c, ldc, 1, 1);
}

// C (m,m) = A (m,k) B (k,m) where the product is known to be symmetric: computes half of it and
// mirrors it.
void symmetric_product_f64(const Context* ctx, int64_t m, int64_t k, const MatrixRef& a,
                           const MatrixRef& b, double* c, bool accumulate = false);

}  // namespace balora
