// General matrix products for the kernels of the CPU device: C = alpha * op(A) op(B) + beta * C,
// row-major, per batch. Products run in f32 (oneDNN), in bf16 with f32 accumulation where the CPU
// has bf16 instructions, and in f64 (product_f64.h) as soon as one operand is f64; every other mix
// is widened first. C is rounded once, from the accumulator. A product uses all of the stream's
// threads: call it outside parallel_for. Products with a frozen f32 weight go through
// packed_weight.h, which packs the weight once.
#pragma once
#include <cstdint>

#include "kernels/kernel_table.h"

namespace balora {

// C (batch,m,n), op(A) (batch,m,k), op(B) (batch,k,n).
struct GemmShape {
  int64_t m, n, k;
  int64_t batch = 1;
};

// Stored (rows,cols) with rows `ld` elements apart, 1 or more; transposed: the product reads it as
// (cols,rows). batch_stride 0 repeats one matrix for the whole batch; other matrices of a batch
// share no element.
struct GemmInput {
  const void* data = nullptr;
  int32_t dtype;
  int64_t ld;
  bool transposed = false;
  int64_t batch_stride = 0;
};

struct GemmOutput {
  void* data = nullptr;
  int32_t dtype;
  int64_t ld;
  int64_t batch_stride = 0;
};

// All of a contiguous matrix.
inline GemmOutput dense_output(const View& c) {
  return {c.data, c.dtype, c.shape[1]};
}

// Factors of a product and of what C was before. With bf16 operands they are compiled into the
// cached primitive: keep them to a few values.
struct GemmScale {
  double alpha = 1;
  double beta = 0;  // 0: C is not read
};

// Whether a product of bf16 is one, rather than of f32 that its operands are widened to.
bool gemm_has_bf16();

void gemm(Context* ctx, const GemmShape& shape, const GemmInput& a, const GemmInput& b,
          const GemmOutput& c, const GemmScale& scale = {});

}  // namespace balora
