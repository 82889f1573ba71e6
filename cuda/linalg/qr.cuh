// Thin QR on the device, the diagonal of R non-negative.
#pragma once
#include "linalg/dense.cuh"

namespace balora::cuda {

struct QrFactors {
  Dense q, r;  // q (M,K), r (K,N), K = min(M,N)
};

// a (M,N). CholeskyQR2 where M >= N and the Gram matrix is well-conditioned, which one host read
// decides; else Householder, so q is orthonormal for any finite input. Scratch: two
// (M,N) and a few (N,N).
QrFactors thin_qr(Scratch& scratch, const Dense& a);

// X (rows,n) becomes X R^-1 in place; R (n,n) upper triangular.
void divide_by_upper(Context* ctx, double* x, int64_t rows, const Dense& r);

}  // namespace balora::cuda
