// Operands of ops that work element by element (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "kernels/shared/op_codes.h"
#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// The gated activation of an mlp:
//   y = activation(gate) * up
typedef struct balora_gated_forward {
  const balora_view* gate;  // (N,F) rows strided
  const balora_view* up;    // (N,F) rows strided
  const balora_view* y;     // (N,F) rows strided
  balora_activation activation;
} balora_gated_forward;

// Gradients of the gated activation, which is computed again from gate and up.
typedef struct balora_gated_backward {
  const balora_view* dy;     // (N,F) rows strided
  const balora_view* gate;   // (N,F) rows strided
  const balora_view* up;     // (N,F) rows strided
  const balora_view* dgate;  // (N,F) rows strided
  const balora_view* dup;    // (N,F) rows strided
  balora_activation activation;
} balora_gated_backward;

// destination = beta * destination + source, in the destination's type (the source's, or wider)
typedef struct balora_accumulate {
  const balora_view* source;
  const balora_view* destination;
  double beta;  // 0: the destination is not read
} balora_accumulate;

// Whether all elements are finite; returns when the answer is on the host.
typedef struct balora_check_finite {
  const balora_view* x;  // any float type
  int32_t* finite;       // 1: no element is a NaN or an infinity, else 0
} balora_check_finite;

// y = value
typedef struct balora_fill {
  const balora_view* y;  // strided, any type
  double value;
} balora_fill;

// y[n] = start + n * step
typedef struct balora_arange {
  const balora_view* y;  // (N)
  double start;
  double step;
} balora_arange;

// destination = source, converted
typedef struct balora_copy {
  const balora_view* source;       // strided, any type
  const balora_view* destination;  // strided, of the same shape, any type
} balora_copy;

// y = op(a, b)
typedef struct balora_binary {
  const balora_view* a;  // strided
  const balora_view* b;  // strided, of a's shape and dtype
  const balora_view* y;  // contiguous, likewise
  balora_binary_op op;
} balora_binary;

// Gradients of div, pow, maximum and minimum.
typedef struct balora_binary_backward {
  const balora_view* dy;  // strided
  const balora_view* a;   // strided
  const balora_view* b;   // strided
  const balora_view* da;  // contiguous, of y's shape; or null
  const balora_view* db;  // contiguous, of y's shape; or null
  balora_binary_op op;
} balora_binary_backward;

// y = op(x; a, b)
typedef struct balora_unary {
  const balora_view* x;  // contiguous
  const balora_view* y;  // contiguous
  balora_unary_op op;
  double a;  // parameters of clamp and affine
  double b;
} balora_unary;

// The gradient of unary.
typedef struct balora_unary_backward {
  const balora_view* dy;     // contiguous
  const balora_view* saved;  // x or y, see kernels/shared/unary.h
  const balora_view* dx;     // contiguous
  balora_unary_op op;
  double a;
  double b;
} balora_unary_backward;

// y = op(a, b)
typedef struct balora_compare {
  const balora_view* a;  // strided
  const balora_view* b;  // strided, of a's shape and dtype
  const balora_view* y;  // u8, contiguous
  balora_compare_op op;
} balora_compare;

// y = condition ? a : b
typedef struct balora_where {
  const balora_view* condition;  // u8, strided
  const balora_view* a;          // strided; null: zeros
  const balora_view* b;          // strided; null: zeros
  const balora_view* y;          // contiguous
} balora_where;

// y = 1 where x is neither NaN nor infinite, else 0
typedef struct balora_is_finite {
  const balora_view* x;
  const balora_view* y;  // u8
} balora_is_finite;

// y = x * scale + bias
typedef struct balora_column_scale_forward {
  const balora_view* x;      // (N,C)
  const balora_view* scale;  // (C) f32 (f64 for f64)
  const balora_view* bias;   // (C) of x's type, or null
  const balora_view* y;      // (N,C)
} balora_column_scale_forward;

// Gradients of column_scale.
typedef struct balora_column_scale_backward {
  const balora_view* dy;      // (N,C)
  const balora_view* x;       // (N,C); may be null without dscale
  const balora_view* scale;   // (C) f32 (f64 for f64)
  const balora_view* dx;      // (N,C), or null
  const balora_view* dscale;  // (C) f32 (f64 for f64), or null
  const balora_view* dbias;   // (C) f32 (f64 for f64), or null
} balora_column_scale_backward;

#ifdef __cplusplus
}  // extern "C"
#endif

// The rows of this family (kernels.def).
#define BALORA_ELEMENTWISE_KERNELS(KERNEL) \
  KERNEL(gated_forward)                    \
  KERNEL(gated_backward)                   \
  KERNEL(accumulate)                       \
  KERNEL(check_finite)                     \
  KERNEL(fill)                             \
  KERNEL(arange)                           \
  KERNEL(copy)                             \
  KERNEL(binary)                           \
  KERNEL(binary_backward)                  \
  KERNEL(unary)                            \
  KERNEL(unary_backward)                   \
  KERNEL(compare)                          \
  KERNEL(where)                            \
  KERNEL(is_finite)                        \
  KERNEL(column_scale_forward)             \
  KERNEL(column_scale_backward)
