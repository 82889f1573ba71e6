// Operands of the kernels of linear layers and matrix products: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = x W^T + bias. In backward kernels y is the gradient of y, null where that output was not
// used.
typedef struct balora_linear {
  const balora_view* weight;  // (O,I)
  const balora_view* bias;    // (O) or null
  const balora_view* y;       // (N,O)
} balora_linear;

// y[linear] += scale * (x A^T) B^T, with f32 (f64 beside f64) A, B and U = x A^T.
typedef struct balora_low_rank {
  const balora_view* a;   // (R,I)
  const balora_view* b;   // (O,R)
  const balora_view* u;   // (N,R): written by forward, read by backward (null there if db is)
  const balora_view* da;  // (R,I) written by backward, or null
  const balora_view* db;  // (O,R) written by backward, or null
  double scale;
  int32_t linear;
  int32_t is_change;  // B A is a change of the base, no difference of large terms
} balora_low_rank;

// strided: any strides, batch dimensions of a and b may have stride 0
// a (...,M,K), b (...,K,N) -> c (...,M,N) contiguous; all of one type, accumulated in f32 (f64 for
// f64)
typedef struct balora_matmul {
  const balora_view* a;
  const balora_view* b;
  const balora_view* c;
  double alpha;
} balora_matmul;

// Linears that share x (N,I): y = x W^T + bias + sum of scale * U B^T over their low-rank parts, U
// = x_adapter A^T. x_adapter (N,I) null: x. Weights in x's type; the CPU packs frozen f32 ones
// once. One rounding of y.
typedef struct balora_linear_forward {
  const balora_view* x;
  const balora_view* x_adapter;
  const balora_linear* linears;
  int32_t count;
  const balora_low_rank* parts;
  int32_t part_count;
} balora_linear_forward;

// dx = sum of dY W (+ dU A where x_adapter is null), dx_adapter = sum of dU A, da = dU^T x, db =
// scale * dY^T U, with dU = scale * dY B. Outputs are overwritten; null ones are not computed. x
// may be null if no da is wanted.
typedef struct balora_linear_backward {
  const balora_view* x;
  const balora_view* x_adapter;
  const balora_view* dx;
  const balora_view* dx_adapter;
  const balora_linear* linears;
  int32_t count;
  const balora_low_rank* parts;
  int32_t part_count;
} balora_linear_backward;

// dy (N,O), x (N,I) -> dweight (O,I) = dy^T x, dbias (O) = sum of dy's rows, in f32 (f64 for f64);
// each may be null
typedef struct balora_linear_weight_backward {
  const balora_view* dy;
  const balora_view* x;
  const balora_view* dweight;
  const balora_view* dbias;
} balora_linear_weight_backward;

// weight (O,I), parts a (R,I), b (O,R) in the accumulator type -> norm (O), likewise: ||weight +
// sum scale b a|| by rows
typedef struct balora_row_norm {
  const balora_view* weight;
  const balora_low_rank* parts;
  int32_t count;
  const balora_view* norm;
} balora_row_norm;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using LinearOperands = balora_linear;
using LowRankOperands = balora_low_rank;
}  // namespace balora
#endif
