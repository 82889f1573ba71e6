// The leading eigenpairs of a symmetric positive semidefinite operator in f64, all on the device:
// no host read, so a row that uses them can be captured in a graph.
#pragma once
#include <functional>

#include "linalg/eigen.cuh"

namespace balora::cuda {

// k pairs, values descending: values (k,1), vectors (n,k) in columns.
struct Eigenpairs {
  Dense values, vectors;
};

// y (n,cols) = A x, rows x_stride and y_stride apart.
using ApplyOperator = std::function<void(const double* x, int64_t x_stride, int64_t cols, double* y,
                                         int64_t y_stride)>;

// Whether the iteration is for this many pairs of an operator of this rank; else decompose densely.
bool iterates_for(int64_t rank, int64_t k);

// Block Krylov iteration with thick restarts. A residual above 1e-6 of the largest value at its end
// is reported by synchronize() in the name of `row`.
Eigenpairs krylov_pairs(Scratch& scratch, int64_t n, int64_t k, const ApplyOperator& apply,
                        const char* row);
// The k leading pairs by a full decomposition; reads the lower triangle.
Eigenpairs dense_pairs(Scratch& scratch, const Dense& a, int64_t k, const char* row);
// One or the other.
Eigenpairs leading_pairs(Scratch& scratch, const Dense& a, int64_t k, const char* row);

}  // namespace balora::cuda
