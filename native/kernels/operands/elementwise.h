// Operands of the kernels of ops that work element by element: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "kernels/op_codes.h"
#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// rows strided. activation 0 silu, 1 gelu, 2 gelu's tanh form
// gate, up (N,F) -> y (N,F) = activation(gate) * up
typedef struct balora_gated_forward {
  const balora_view* gate;
  const balora_view* up;
  const balora_view* y;
  int32_t activation;
} balora_gated_forward;

// dy, gate, up (N,F) -> dgate, dup (N,F)
typedef struct balora_gated_backward {
  const balora_view* dy;
  const balora_view* gate;
  const balora_view* up;
  const balora_view* dgate;
  const balora_view* dup;
  int32_t activation;
} balora_gated_backward;

// rows strided
// x (N,H,D), cosine, sine (P,Drot/2) in the accumulator type, positions (N) i32 -> y (N,H,D)
typedef struct balora_rope {
  const balora_view* x;
  const balora_view* cosine;
  const balora_view* sine;
  const balora_view* positions;
  const balora_view* y;
  int32_t inverse;
} balora_rope;

// destination = beta * destination + source, in the destination's type (which may be wider than the
// source's); with beta 0 the destination is not read
typedef struct balora_accumulate {
  const balora_view* source;
  const balora_view* destination;
  double beta;
} balora_accumulate;

// *finite = 1 when no element of x is a NaN or an infinity, else 0; returns when the answer is on
// the host
typedef struct balora_check_finite {
  const balora_view* x;
  int32_t* finite;
} balora_check_finite;

// y (strided) = value
typedef struct balora_fill {
  const balora_view* y;
  double value;
} balora_fill;

// y (N)[n] = start + n * step
typedef struct balora_arange {
  const balora_view* y;
  double start;
  double step;
} balora_arange;

// destination = source, converted; both strided, of one shape, any dtypes
typedef struct balora_copy {
  const balora_view* source;
  const balora_view* destination;
} balora_copy;

// op is a balora_binary_op
// a, b strided, y contiguous, all of one shape and dtype
typedef struct balora_binary {
  const balora_view* a;
  const balora_view* b;
  const balora_view* y;
  int32_t op;
} balora_binary;

// div, pow, maximum, minimum: dy, a, b strided -> da, db contiguous, of y's shape; each may be null
typedef struct balora_binary_backward {
  const balora_view* dy;
  const balora_view* a;
  const balora_view* b;
  const balora_view* da;
  const balora_view* db;
  int32_t op;
} balora_binary_backward;

// x (any) times factor () f64 -> y
typedef struct balora_scale_by {
  const balora_view* x;
  const balora_view* factor;
  const balora_view* y;
} balora_scale_by;

// op is a balora_unary_op, a and b its parameters
// x -> y, contiguous
typedef struct balora_unary {
  const balora_view* x;
  const balora_view* y;
  int32_t op;
  double a;
  double b;
} balora_unary;

// dy, saved (x, or y where unary.cc says so) -> dx
typedef struct balora_unary_backward {
  const balora_view* dy;
  const balora_view* saved;
  const balora_view* dx;
  int32_t op;
  double a;
  double b;
} balora_unary_backward;

// a, b strided, of one shape and dtype -> y u8 contiguous; op is a balora_compare_op
typedef struct balora_compare {
  const balora_view* a;
  const balora_view* b;
  const balora_view* y;
  int32_t op;
} balora_compare;

// condition u8, a, b strided (a null one is zero) -> y contiguous, all of one shape
typedef struct balora_where {
  const balora_view* condition;
  const balora_view* a;
  const balora_view* b;
  const balora_view* y;
} balora_where;

// x -> y u8, 1 where neither NaN nor infinite
typedef struct balora_is_finite {
  const balora_view* x;
  const balora_view* y;
} balora_is_finite;

// x *= coefficient
typedef struct balora_scale {
  const balora_view* coefficient;
  const balora_view* x;
} balora_scale;

// destination += alpha * source, in the destination's type
typedef struct balora_add_scaled {
  const balora_view* source;
  const balora_view* destination;
  double alpha;
} balora_add_scaled;

// x (N,C), scale (C) in the accumulator type, bias (C, x's type, may be null) -> y (N,C) = x *
// scale + bias
typedef struct balora_column_scale_forward {
  const balora_view* x;
  const balora_view* scale;
  const balora_view* bias;
  const balora_view* y;
} balora_column_scale_forward;

// dy, x (N,C; x may be null without dscale), scale (C) -> dx (N,C), dscale, dbias (C) in the
// accumulator type; each may be null
typedef struct balora_column_scale_backward {
  const balora_view* dy;
  const balora_view* x;
  const balora_view* scale;
  const balora_view* dx;
  const balora_view* dscale;
  const balora_view* dbias;
} balora_column_scale_backward;

#ifdef __cplusplus
}  // extern "C"
#endif
