// Operands of reductions (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "kernels/shared/op_codes.h"
#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = op over R
typedef struct balora_reduce {
  const balora_view* x;  // (A,R,C)
  const balora_view* y;  // (A,C), any float type
  balora_reduce_op op;
  double correction;  // of variance
} balora_reduce;

// Gradients of logsumexp and variance.
typedef struct balora_reduce_backward {
  const balora_view* dy;  // (A,C)
  const balora_view* x;   // (A,R,C)
  const balora_view* y;   // (A,C) f32 (f64 for f64); not read for variance
  const balora_view* dx;  // (A,R,C)
  balora_reduce_op op;
  double correction;
} balora_reduce_backward;

// The largest or smallest element over R > 0, and the first place where it stands.
typedef struct balora_extreme {
  const balora_view* x;          // (A,R,C)
  const balora_view* values;     // (A,C), or null
  const balora_view* positions;  // (A,C) i32, or null
  int32_t is_max;                // non-zero: the largest
} balora_extreme;

// The K largest elements of each row; the lower column first where values are equal.
typedef struct balora_topk {
  const balora_view* x;        // (N,C)
  const balora_view* values;   // (N,K) descending
  const balora_view* columns;  // (N,K) i32
} balora_topk;

#ifdef __cplusplus
}  // extern "C"
#endif

// The rows of this family (kernels.def).
#define BALORA_REDUCE_KERNELS(KERNEL) \
  KERNEL(reduce)                      \
  KERNEL(reduce_backward)             \
  KERNEL(extreme)                     \
  KERNEL(topk)
