// Plain C operands of the optimisers' rows, of which one call takes any number: a model has
// hundreds of small parameters, and a launch for each would cost a GPU more than the arithmetic.
// Crosses the device plug-in boundary; see kernel_table.h for the ABI number.
#pragma once
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

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using AdamwOperands = balora_adamw;
using AdamwList = balora_adamw_list;
using ViewList = balora_view_list;
}  // namespace balora
#endif
