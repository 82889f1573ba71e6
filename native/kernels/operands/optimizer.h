// Operands of optimizers (kernels.def has the rules): flat contiguous buffers, written in place.
#pragma once
#include <stdint.h>

#include "kernels/shared/op_codes.h"
#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// Elements of a parameter's rate in adamw_step, at step t.
typedef enum balora_adamw_rate {
  BALORA_RATE_LR = 0,
  BALORA_RATE_STEP = 1,  // lr / (1 - beta1^t)
  BALORA_RATE_ROOT = 2,  // 1 / sqrt(1 - beta2^t)
  BALORA_RATE_SIZE = 3
} balora_adamw_rate;

// One parameter of adamw_step: buffers of one shape, f32 or f64, all of param's type.
typedef struct balora_adamw {
  const balora_view* grad;
  const balora_view* rate;  // (BALORA_RATE_SIZE) f64, see balora_adamw_rate
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

// AdamW on any number of parameters at once: a model has hundreds of small ones, and a launch for
// each would cost a GPU more than the arithmetic.
typedef struct balora_adamw_step {
  const balora_adamw_list* tensors;
  const balora_view* coefficient;  // () f64, multiplied into every gradient; null: 1
  double beta1;
  double beta2;
  double eps;
} balora_adamw_step;

// SGD on one parameter.
typedef struct balora_sgd_step {
  const balora_view* grad;
  const balora_view* coefficient;  // () f64, or null: 1
  const balora_view* param;
  const balora_view* buffer;  // the momentum; null without one
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  int32_t nesterov;  // non-zero: Nesterov's momentum
  int32_t first;     // non-zero: the buffer becomes the gradient
} balora_sgd_step;

// total += sum |x| or sum x^2 over all tensors, or becomes the larger of itself and max |x|.
typedef struct balora_norm_accumulate {
  const balora_view_list* tensors;
  const balora_view* total;  // () f64
  balora_norm_kind kind;
} balora_norm_accumulate;

// Adafactor (Shazeer and Stern 2018) on one parameter.
typedef struct balora_adafactor_step {
  const balora_view* grad;         // (...,R,C) f32 or f64
  const balora_view* coefficient;  // () f64, or null: 1
  const balora_view* param;        // (...,R,C)
  const balora_view* row;     // (...,R) of the second moment; without column (...,R,C): all of it
  const balora_view* column;  // (...,C), or null
  const balora_view* m;       // (...,R,C) the first moment, or null
  double lr;
  double beta1;
  double beta2;  // the decay at this step
  double eps;
  double clip;
  double weight_decay;
  double scale_floor;  // negative: the rate is not scaled by RMS(param)
} balora_adafactor_step;

// y = x * factor
typedef struct balora_scale_by {
  const balora_view* x;       // any shape
  const balora_view* factor;  // () f64
  const balora_view* y;
} balora_scale_by;

// x *= coefficient
typedef struct balora_scale {
  const balora_view* coefficient;  // () f64
  const balora_view* x;
} balora_scale;

// destination += alpha * source, in the destination's type
typedef struct balora_add_scaled {
  const balora_view* source;
  const balora_view* destination;
  double alpha;
} balora_add_scaled;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using AdamwOperands = balora_adamw;
using AdamwList = balora_adamw_list;
using ViewList = balora_view_list;
}  // namespace balora
#endif

// The rows of this family (kernels.def).
#define BALORA_OPTIMIZER_KERNELS(KERNEL) \
  KERNEL(scale)                          \
  KERNEL(scale_by)                       \
  KERNEL(add_scaled)                     \
  KERNEL(adamw_step)                     \
  KERNEL(sgd_step)                       \
  KERNEL(norm_accumulate)                \
  KERNEL(adafactor_step)
