// Products whose rows do not depend on each other: row i of C is the same bit for bit whichever
// rows stand beside it. gemm() leaves the order of its sums to cuBLAS, which chooses it by the
// number of rows.
#pragma once
#include "runtime/blas.cuh"

namespace balora::cuda {

// The counterpart of gemm() for one matrix in f32, f64 or f16, with A read row by row and B
// stored (n,k).
void row_product(Context* ctx, const GemmShape& shape, double alpha, const GemmOperand& a,
                 const GemmOperand& b, double beta, const GemmResult& c);

}  // namespace balora::cuda
