// Operands of the kernels of reductions: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "kernels/op_codes.h"
#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// op is a balora_reduce_op
// x (A,R,C) -> y (A,C), in any float dtype; correction is variance's
typedef struct balora_reduce {
  const balora_view* x;
  const balora_view* y;
  int32_t op;
  double correction;
} balora_reduce;

// logsumexp (y in f32, f64 for f64) and variance (y not read): dy (A,C) -> dx (A,R,C)
typedef struct balora_reduce_backward {
  const balora_view* dy;
  const balora_view* x;
  const balora_view* y;
  const balora_view* dx;
  int32_t op;
  double correction;
} balora_reduce_backward;

// x (A,R,C), R > 0 -> values (A,C), positions (A,C) i32, the first where several are equal; each
// may be null
typedef struct balora_extreme {
  const balora_view* x;
  const balora_view* values;
  const balora_view* positions;
  int32_t is_max;
} balora_extreme;

// x (N,C) -> values (N,K) descending, columns (N,K) i32; the lower column first where values are
// equal
typedef struct balora_topk {
  const balora_view* x;
  const balora_view* values;
  const balora_view* columns;
} balora_topk;

#ifdef __cplusplus
}  // extern "C"
#endif
