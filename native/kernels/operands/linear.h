// Operands of linear layers: one structure a kernel, read by
// native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary: a change of a
// structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// One of the linears that share an input: y = x W^T + bias.
typedef struct balora_linear {
  const balora_view* weight;  // (O,I)
  const balora_view* bias;    // (O) or null
  const balora_view* y;  // (N,O); in backward its gradient, null where that output was not used
} balora_linear;

// A low-rank part: y[linear] += scale * (x A^T) B^T, with f32 (f64 beside f64) A, B and U = x A^T.
typedef struct balora_low_rank {
  const balora_view* a;   // (R,I)
  const balora_view* b;   // (O,R)
  const balora_view* u;   // (N,R): written by forward, read by backward (null there if db is)
  const balora_view* da;  // (R,I) written by backward, or null
  const balora_view* db;  // (O,R) written by backward, or null
  double scale;
  int32_t linear;     // index of its linear
  int32_t is_change;  // non-zero: B A is a change of the base, no difference of large terms
} balora_low_rank;

// Linears that share x, with their low-rank parts:
// y = x W^T + bias + sum over parts of scale * U B^T,  U = x_adapter A^T
// Rounded once. Weights are of x's type; the CPU packs frozen f32 ones once.
typedef struct balora_linear_forward {
  const balora_view* x;          // (N,I)
  const balora_view* x_adapter;  // (N,I) the input of the parts (dropout); null: x
  const balora_linear* linears;
  int32_t count;  // of linears
  const balora_low_rank* parts;
  int32_t part_count;
} balora_linear_forward;

// Gradients of the inputs and the parts; those of linears and parts stand in their structures. With
// dU = scale * dY B: dx = sum of dY W (+ dU A where x_adapter is null),  dx_adapter = sum of dU A
// da = dU^T x,  db = scale * dY^T U
// Outputs are overwritten; null ones are not computed.
typedef struct balora_linear_backward {
  const balora_view* x;           // (N,I); may be null if no da is wanted
  const balora_view* x_adapter;   // (N,I), or null
  const balora_view* dx;          // (N,I), or null
  const balora_view* dx_adapter;  // (N,I), or null
  const balora_linear* linears;
  int32_t count;
  const balora_low_rank* parts;
  int32_t part_count;
} balora_linear_backward;

// dweight = dy^T x,  dbias = the sum of dy's rows
typedef struct balora_linear_weight_backward {
  const balora_view* dy;       // (N,O)
  const balora_view* x;        // (N,I); may be null without dweight
  const balora_view* dweight;  // (O,I) f32 (f64 for f64), or null
  const balora_view* dbias;    // (O) f32 (f64 for f64), or null
} balora_linear_weight_backward;

// norm = || weight + sum over parts of scale * b a ||, by rows (DoRA).
typedef struct balora_row_norm {
  const balora_view* weight;     // (O,I)
  const balora_low_rank* parts;  // a (R,I), b (O,R) in f32 (f64 for f64)
  int32_t count;                 // of parts
  const balora_view* norm;       // (O) f32 (f64 for f64)
} balora_row_norm;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using LinearOperands = balora_linear;
using LowRankOperands = balora_low_rank;
}  // namespace balora
#endif

// The rows of this family (kernels.def).
#define BALORA_LINEAR_KERNELS(KERNEL) \
  KERNEL(linear_forward)              \
  KERNEL(linear_backward)             \
  KERNEL(linear_weight_backward)      \
  KERNEL(row_norm)
