// Operands of the kernels of attention: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

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

// rows strided. Segments [cu[b], cu[b+1]) of the N rows are sequences; lengths (B,
// may be null) counts the rows of each that are not padding. cu_queries (B+1, may be null): segment
// b has queries for its last rows alone, rows [cu_queries[b], cu_queries[b+1]) of the M rows of q.
// A query sees itself and, with window W > 0, the W - 1 keys before it (and after it, when not
// causal). softcap c > 0: scores become c * tanh(score / c) q (M,H,D), k, v (N,Hkv,D), cu_seqlens
// (B+1) i32, cu_queries (B+1) i32, lengths (B) i32 -> out (M,H,D) contiguous, lse (M,H) in the
// accumulator type
typedef struct balora_attention_forward {
  const balora_view* q;
  const balora_view* k;
  const balora_view* v;
  const balora_view* cu_seqlens;
  const balora_view* cu_queries;
  const balora_view* lengths;
  const balora_view* out;
  const balora_view* lse;
  double scale;
  double softcap;
  int64_t window;
  int32_t causal;
} balora_attention_forward;

// dout, q, k, v, cu_seqlens, cu_queries, lengths, out, lse -> dq (M,H,D), dk, dv (N,Hkv,D)
typedef struct balora_attention_backward {
  const balora_view* dout;
  const balora_view* q;
  const balora_view* k;
  const balora_view* v;
  const balora_view* cu_seqlens;
  const balora_view* cu_queries;
  const balora_view* lengths;
  const balora_view* out;
  const balora_view* lse;
  const balora_view* dq;
  const balora_view* dk;
  const balora_view* dv;
  double scale;
  double softcap;
  int64_t window;
  int32_t causal;
} balora_attention_backward;

// Rows that see no key are zero
// r -> out (N,H,D) contiguous, lse (N,H) in the accumulator type
typedef struct balora_relative_attention_forward {
  const balora_relative* r;
  const balora_view* out;
  const balora_view* lse;
} balora_relative_attention_forward;

// dout (N,H,D) rows strided, r, out, lse -> gradients
typedef struct balora_relative_attention_backward {
  const balora_view* dout;
  const balora_relative* r;
  const balora_view* out;
  const balora_view* lse;
  const balora_relative_gradients* gradients;
} balora_relative_attention_backward;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using Relative = balora_relative;
using RelativeGradients = balora_relative_gradients;
}  // namespace balora
#endif
