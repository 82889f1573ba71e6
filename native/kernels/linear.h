// Plain C operands of the linear layers' kernels: several linears that share their input, each with
// any number of low-rank parts. Crosses the device plug-in boundary; see kernel_table.h for the ABI
// number.
#pragma once
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

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using LinearOperands = balora_linear;
using LowRankOperands = balora_low_rank;
}  // namespace balora
#endif
