// The operands of attention with relative positions (kernels.def, relative_attention). Plain C: it
// crosses the device boundary.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

// score(t,j) = scale * (q_t k_j + q_t position_k[p] + k_j position_q[p]) + bias[r] by head, with
// r = j - t + (R-1)/2 and p = index[r]. Each of the last four may be null, index only together with
// position_k and position_q.
typedef struct balora_relative {
  const balora_view* q;              // (N,H,D) rows strided
  const balora_view* k;              // (M,H,D) rows strided
  const balora_view* v;              // (M,H,D) rows strided
  const balora_view* cu_queries;     // (B+1) i32
  const balora_view* cu_keys;        // (B+1) i32
  const balora_view* query_lengths;  // (B) i32: rows of a segment that are not padding; null: all
  const balora_view* key_lengths;    // (B) i32, likewise
  const balora_view* bias;           // (R,H) contiguous
  const balora_view* position_k;     // (P,H,D) rows strided
  const balora_view* position_q;     // (P,H,D) rows strided
  const balora_view* index;          // (R) i32
  double scale;
  int32_t causal;  // key j is seen by the queries t >= j of its segment only
} balora_relative;

// Where the gradients go, each of its operand's shape and type, contiguous; null: not wanted.
typedef struct balora_relative_gradients {
  const balora_view* q;
  const balora_view* k;
  const balora_view* v;
  const balora_view* bias;
  const balora_view* position_k;
  const balora_view* position_q;
} balora_relative_gradients;

#ifdef __cplusplus
namespace balora {
using Relative = balora_relative;
using RelativeGradients = balora_relative_gradients;
}  // namespace balora
#endif
