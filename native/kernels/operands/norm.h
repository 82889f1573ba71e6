// Operands of norms and softmax (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// RMSNorm over the last dimension:
//   y = x * rstd * (weight + weight_offset),  rstd = 1 / sqrt(mean(x^2) + eps)
typedef struct balora_rms_norm_forward {
  const balora_view* x;       // (N,C)
  const balora_view* weight;  // (C)
  const balora_view* y;       // (N,C)
  const balora_view* rstd;    // (N) f32 (f64 for f64)
  double eps;
  double weight_offset;  // 1 for Gemma, whose weights are stored minus one
  // Non-zero: x * rstd is rounded to the dtype before the weight (Llama).
  int32_t cast_before_weight;
} balora_rms_norm_forward;

// The same of x + residual: sum is rounded once, and y is the norm of what was stored.
typedef struct balora_rms_norm_add_forward {
  const balora_view* x;         // (N,C)
  const balora_view* residual;  // (N,C)
  const balora_view* weight;    // (C)
  const balora_view* sum;       // (N,C) = x + residual
  const balora_view* y;         // (N,C), the norm of sum
  const balora_view* rstd;      // (N) f32 (f64 for f64)
  double eps;
  double weight_offset;
  int32_t cast_before_weight;
} balora_rms_norm_add_forward;

// Gradients of both; x is what was normalised, the sum. The partial sums of dweight are added in
// the threads' order.
typedef struct balora_rms_norm_backward {
  const balora_view* dy;       // (N,C)
  const balora_view* dsum;     // (N,C) the gradient of x beside the norm, added to dx; null: none
  const balora_view* x;        // (N,C)
  const balora_view* weight;   // (C)
  const balora_view* rstd;     // (N)
  const balora_view* dx;       // (N,C), or null
  const balora_view* dweight;  // (C) f32 (f64 for f64), or null
  double weight_offset;
  int32_t cast_before_weight;
} balora_rms_norm_backward;

// LayerNorm over the last dimension:
//   y = (x - mean) * rstd * weight + bias,  rstd = 1 / sqrt(var(x) + eps)
typedef struct balora_layer_norm_forward {
  const balora_view* x;       // (N,C)
  const balora_view* weight;  // (C), or null: ones
  const balora_view* bias;    // (C), or null: zeros
  const balora_view* y;       // (N,C)
  const balora_view* mean;    // (N) f32 (f64 for f64)
  const balora_view* rstd;    // (N) f32 (f64 for f64)
  double eps;
} balora_layer_norm_forward;

// Gradients of LayerNorm.
typedef struct balora_layer_norm_backward {
  const balora_view* dy;       // (N,C)
  const balora_view* x;        // (N,C)
  const balora_view* weight;   // (C), or null: ones
  const balora_view* mean;     // (N)
  const balora_view* rstd;     // (N)
  const balora_view* dx;       // (N,C), or null
  const balora_view* dweight;  // (C) f32 (f64 for f64), or null
  const balora_view* dbias;    // (C) f32 (f64 for f64), or null
} balora_layer_norm_backward;

// y = softmax(x), or its logarithm, over the last dimension.
typedef struct balora_softmax_forward {
  const balora_view* x;    // (N,C)
  const balora_view* y;    // (N,C)
  const balora_view* lse;  // (N) f32 (f64 for f64)
  int32_t logarithm;       // non-zero: log-softmax
} balora_softmax_forward;

// The gradient of softmax.
typedef struct balora_softmax_backward {
  const balora_view* dy;   // (N,C)
  const balora_view* x;    // (N,C)
  const balora_view* lse;  // (N)
  const balora_view* dx;   // (N,C)
  int32_t logarithm;
} balora_softmax_backward;

#ifdef __cplusplus
}  // extern "C"
#endif

// The rows of this family (kernels.def).
#define BALORA_NORM_KERNELS(KERNEL) \
  KERNEL(rms_norm_forward)          \
  KERNEL(rms_norm_add_forward)      \
  KERNEL(rms_norm_backward)         \
  KERNEL(layer_norm_forward)        \
  KERNEL(layer_norm_backward)       \
  KERNEL(softmax_forward)           \
  KERNEL(softmax_backward)
