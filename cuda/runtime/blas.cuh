// Products of matrices through cuBLAS, opened at run time: the package works on machines that have
// none, and asking for the device there says what was looked for.
#pragma once
#include "kernels/shared/rows.h"
#include "runtime/common.cuh"

namespace balora::cuda {

Blas* open_blas(DeviceState& state);  // throws with the names that were tried
void close_blas(Blas* blas);

// A row-major matrix: element (i, j) at i * stride + j, or of the transpose, at j * stride + i.
struct GemmOperand {
  const void* data;
  int32_t dtype;
  int64_t stride;
  bool transposed = false;
  int64_t batch_stride = 0;
};
struct GemmResult {
  void* data;
  int32_t dtype;
  int64_t stride;
  int64_t batch_stride = 0;
};
struct GemmShape {
  int64_t m, n, k;
  int64_t batch = 1;
};

// c (M,N) = alpha a (M,K) b (K,N) + beta c; a and b of one float type, c of it or of the
// accumulator (f32; f64 for f64), in which sums are kept; with beta 0 c is not read. Operands
// of two types (bf16 or f16 beside f32): batch 1 and c f32; the narrow one is widened to f32
// in scratch.
void gemm(Context* ctx, const GemmShape& shape, double alpha, const GemmOperand& a,
          const GemmOperand& b, double beta, const GemmResult& c);

inline int32_t accumulator_of(int32_t dtype) {
  return dtype == BALORA_F64 ? BALORA_F64 : BALORA_F32;
}

// to (rows,cols) = from, converted and rounded once.
void convert_matrix(Context* ctx, int64_t rows, int64_t cols, const SourceRows& from,
                    const ResultRows& to);

}  // namespace balora::cuda
