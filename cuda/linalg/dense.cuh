// Dense f64 matrices on the device for the decompositions: storage, conversion, products. The
// device's side of kernels/cpu/linalg/dense.h. Nothing here waits for the device except
// host_values().
#pragma once
#include <vector>

#include "runtime/blas.cuh"
#include "runtime/scratch.cuh"

namespace balora::cuda {

// Row-major (rows,cols), without gaps.
struct Dense {
  int64_t rows = 0, cols = 0;
  Buffer<double> values;

  Dense() = default;
  Dense(Scratch& scratch, int64_t r, int64_t c) : rows(r), cols(c), values(scratch, r * c) {}
  double* data() const { return values.data(); }
  int64_t size() const { return rows * cols; }
};

Dense widened(Scratch& scratch, const void* data, int32_t dtype, int64_t rows, int64_t cols);
Dense widened(Scratch& scratch, const View& view);  // contiguous, (M,N) or (N) as (N,1)
// Rounds once; the view is contiguous.
void store_values(Context* ctx, const double* values, const View& view);
Dense zeros(Scratch& scratch, int64_t rows, int64_t cols);
Dense copied(Scratch& scratch, const Dense& a);
Dense transposed(Scratch& scratch, const Dense& a);
// a = (a + a^T) / 2
void symmetrise(Context* ctx, const Dense& a);

// C (m,n) = alpha op(A) op(B) + beta C with rows lda, ldb, ldc apart.
struct Factor {
  const double* data;
  int64_t stride;
  bool transposed = false;
};
void multiply(Context* ctx, const GemmShape& shape, double alpha, const Factor& a, const Factor& b,
              double beta, double* c, int64_t ldc);
Dense product(Scratch& scratch, const Dense& a, const Dense& b);     // A B
Dense product_tn(Scratch& scratch, const Dense& a, const Dense& b);  // A^T B
Dense product_nt(Scratch& scratch, const Dense& a, const Dense& b);  // A B^T

// One power of two a matrix: `up` brings its largest magnitude into [1, 2), `down` takes it back;
// zero leaves 1. A matrix with NaN or infinity: `up` is NaN.
struct Scale {
  double up, down;
};
__device__ inline Scale scale_for(double largest) {
  if (!(largest - largest == 0)) return {largest - largest, 1};
  const int exponent = largest > 0 ? max(-1000, min(1000, ilogb(largest))) : 0;
  return {ldexp(1.0, -exponent), ldexp(1.0, exponent)};
}
Buffer<Scale> scale_of(Scratch& scratch, const double* values, int64_t count);

// Waits for the device.
std::vector<double> host_values(Context* ctx, const double* values, int64_t count);

}  // namespace balora::cuda
