// Operands of the kernels of optimizers: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// Flat contiguous buffers of one shape, f32 or f64, all of param's type.
typedef struct balora_adamw {
  const balora_view* grad;
  const balora_view* rate;  // (3) f64
  const balora_view* param;
  const balora_view* m;
  const balora_view* v;
  double weight_decay;
} balora_adamw;

typedef struct balora_adamw_list {
  const balora_adamw* at;
  int32_t count;
} balora_adamw_list;

typedef struct balora_view_list {
  const balora_view* const* at;
  int32_t count;
} balora_view_list;

// flat contiguous buffers, written in place; coefficient is one f64 (1 where null), multiplied into
// grad Any number of parameters at once; rate (3) f64 = lr, lr / (1 -
// beta1^t), 1 / sqrt(1 - beta2^t) at step t, from 1
typedef struct balora_adamw_step {
  const balora_adamw_list* tensors;
  const balora_view* coefficient;
  double beta1;
  double beta2;
  double eps;
} balora_adamw_step;

// buffer is null without momentum
typedef struct balora_sgd_step {
  const balora_view* grad;
  const balora_view* coefficient;
  const balora_view* param;
  const balora_view* buffer;
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  int32_t nesterov;
  int32_t first;
} balora_sgd_step;

// total (one f64) += sum |x| or sum x^2 over all tensors, or becomes the larger of itself and max
// |x|; kind is a balora_norm_kind
typedef struct balora_norm_accumulate {
  const balora_view_list* tensors;
  const balora_view* total;
  int32_t kind;
} balora_norm_accumulate;

// param and grad (...,R,C) f32 or f64, contiguous, written in place; coefficient as above
// row (...,R) and column (...,C) are the factored second moment; column null: row (...,R,C) is the
// whole of it. m, the first moment, may be null. beta2 is the decay at this step; scale_floor < 0:
// the rate is not scaled by RMS(param)
typedef struct balora_adafactor_step {
  const balora_view* grad;
  const balora_view* coefficient;
  const balora_view* param;
  const balora_view* row;
  const balora_view* column;
  const balora_view* m;
  double lr;
  double beta1;
  double beta2;
  double eps;
  double clip;
  double weight_decay;
  double scale_floor;
} balora_adafactor_step;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using AdamwOperands = balora_adamw;
using AdamwList = balora_adamw_list;
using ViewList = balora_view_list;
}  // namespace balora
#endif
