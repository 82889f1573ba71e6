// Eigenvalues and eigenvectors of a symmetric matrix on the device, without a host read, so that it
// can be captured in a graph.
#pragma once
#include "linalg/dense.cuh"

namespace balora::cuda {

// a (N,N) f64, lower triangle read -> values (N) ascending, vectors (N,N) in columns (may be null).
// NaN or infinity in a: everything becomes NaN and synchronize() reports it in the name of `row`.
void symmetric_eigen(Scratch& scratch, int64_t n, const double* a, double* values, double* vectors,
                     const char* row = "eigh");

// The same with scratch of its own: for a single decomposition in a row, not for a loop.
void eigh_device(Context* ctx, int64_t n, const double* a, double* values, double* vectors,
                 const char* row = "eigh");

}  // namespace balora::cuda
