// The SVD regularizer's scalars and gradient on the device, from eigenpairs of a Gram matrix of Z;
// the algebra is that of kernels/cpu/head/svd_ratio.cc:
//   L = -(sum of the k largest singular values) / F,  dL/dZ = U diag(weights) U^T Z + shift Z
#pragma once
#include "linalg/leading_pairs.cuh"

namespace balora::cuda {

struct SvdRatio {
  Dense weights;  // (count,1), one a pair
  Dense shift;    // (1,1)
};

// squares (count,1): eigenvalues of Z Z^T, descending, all of them for the nuclear norm;
// squared_norm (1,1): of Z. Writes the value.
SvdRatio svd_ratio(Scratch& scratch, const Dense& squares, const Dense& squared_norm, int64_t k,
                   bool nuclear, double* value);

// out (n,C) = U diag(weights) (U^T p) + shift p
Dense ratio_gradient(Scratch& scratch, const Dense& u, const SvdRatio& ratio, const Dense& p);

// Rows of a times weights, and a times shift.
void scale_rows(Context* ctx, const Dense& a, const Dense& weights);
Dense times_shift(Scratch& scratch, const Dense& a, const Dense& shift);
// Sums (1,1) of a o b and of the diagonal of a, in an order that depends on the size alone.
Dense sum_of_products(Scratch& scratch, const Dense& a, const Dense& b);
Dense trace_of(Scratch& scratch, const Dense& a);

}  // namespace balora::cuda
