// Eigenvalues and eigenvectors of a symmetric matrix on the device, without a host read, so that it
// can be captured in a graph.
#pragma once
#include "linalg/dense.cuh"

namespace balora::cuda {

struct EigenOutputs {
  double* values;             // (N) ascending
  double* vectors = nullptr;  // (N,N) in columns
};

// Eigenvalues, and vectors where asked for, of a (N,N) f64, whose lower triangle is read. NaN or
// infinity in a: everything becomes NaN and synchronize() reports it in the name of `row`.
void symmetric_eigen(Scratch& scratch, int64_t n, const double* a, const EigenOutputs& out,
                     const char* row = "eigh");

}  // namespace balora::cuda
