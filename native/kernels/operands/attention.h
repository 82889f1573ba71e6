// Operands of attention (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// Scores of attention with relative positions (DeBERTa, T5):
//   score(t,j) = scale * (q_t k_j + q_t position_k[p] + k_j position_q[p]) + bias[r]
// by head, with r = j - t + (R-1)/2 and p = index[r]. bias, position_k, position_q and index may
// each be null; index goes only together with position_k and position_q.
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
  int32_t causal;  // non-zero: key j is seen by the queries t >= j of its segment only
} balora_relative;

// Gradients, each of its operand's shape and type, contiguous; null: not wanted.
typedef struct balora_relative_gradients {
  const balora_view* q;
  const balora_view* k;
  const balora_view* v;
  const balora_view* bias;
  const balora_view* position_k;
  const balora_view* position_q;
} balora_relative_gradients;

// Attention over segments: rows [cu_seqlens[b], cu_seqlens[b+1]) are the sequence b.
//   out = softmax(scores) v
//   scores = softcap * tanh(scale q k^T / softcap), without a softcap scale q k^T
// A query sees itself and, with a window W > 0, the W - 1 keys before it (and after it, when
// not causal). The sink of a head is one score more in each of its softmaxes, without a value: it
// takes e^(sink - lse) of a query's probabilities.
typedef struct balora_attention_forward {
  const balora_view* q;           // (M,H,D) rows strided
  const balora_view* k;           // (N,Hkv,D) rows strided
  const balora_view* v;           // (N,Hkv,D) rows strided
  const balora_view* cu_seqlens;  // (B+1) i32
  const balora_view* cu_queries;  // (B+1) i32: segment b has queries for its last rows alone, rows
                                  // [cu_queries[b], cu_queries[b+1]) of q; null: for all
  const balora_view* lengths;     // (B) i32: rows of each segment that are not padding; null: all
  const balora_view* sinks;       // (H) f32 (f64 for f64); null: none
  const balora_view* out;         // (M,H,D) contiguous
  const balora_view* lse;         // (M,H) f32 (f64 for f64), sinks in it
  double scale;
  double softcap;  // 0: none
  int64_t window;  // 0: none
  int32_t causal;  // non-zero: no query sees a later key
} balora_attention_forward;

// Gradients of attention.
typedef struct balora_attention_backward {
  const balora_view* dout;        // (M,H,D) rows strided
  const balora_view* q;           // (M,H,D) rows strided
  const balora_view* k;           // (N,Hkv,D) rows strided
  const balora_view* v;           // (N,Hkv,D) rows strided
  const balora_view* cu_seqlens;  // (B+1) i32
  const balora_view* cu_queries;  // (B+1) i32, or null
  const balora_view* lengths;     // (B) i32, or null
  const balora_view* sinks;       // (H), or null
  const balora_view* out;         // (M,H,D)
  const balora_view* lse;         // (M,H)
  const balora_view* dq;          // (M,H,D)
  const balora_view* dk;          // (N,Hkv,D)
  const balora_view* dv;          // (N,Hkv,D)
  const balora_view* dsinks;      // (H), null without sinks
  double scale;
  double softcap;
  int64_t window;
  int32_t causal;
} balora_attention_backward;

// Attention with relative positions. Rows that see no key are zero.
typedef struct balora_relative_attention_forward {
  const balora_relative* r;
  const balora_view* out;  // (N,H,D) contiguous
  const balora_view* lse;  // (N,H) f32 (f64 for f64)
} balora_relative_attention_forward;

// Gradients of attention with relative positions.
typedef struct balora_relative_attention_backward {
  const balora_view* dout;  // (N,H,D) rows strided
  const balora_relative* r;
  const balora_view* out;  // (N,H,D)
  const balora_view* lse;  // (N,H)
  const balora_relative_gradients* gradients;
} balora_relative_attention_backward;

// Rotary position embedding of the first Drot channels of each head; the others are copied.
// Its own backward with `inverse`.
typedef struct balora_rope {
  const balora_view* x;          // (N,H,D) rows strided
  const balora_view* cosine;     // (P,Drot/2) f32 (f64 for f64)
  const balora_view* sine;       // (P,Drot/2), likewise
  const balora_view* positions;  // (N) i32, below P
  const balora_view* y;          // (N,H,D) rows strided
  int32_t inverse;               // non-zero: rotate back
} balora_rope;

// Positions of a block of a cache of keys and values.
#define BALORA_CACHE_BLOCK 32
// Channels to whose next multiple those of a head are rounded up in it.
#define BALORA_CACHE_CHANNELS 32

// A cache of keys and values in blocks of BALORA_CACHE_BLOCK positions, as one layer sees it. The
// blocks of all chunks are numbered one after the other. In a block each layer has, for each head,
// its keys by channel, (Dp,BLOCK), and its values by position, (BLOCK,Dp), with Dp the channels D
// of a head rounded up to BALORA_CACHE_CHANNELS; what lies beyond D, and beyond a sequence's
// length, has no meaning.
typedef struct balora_kv_cache {
  // Each (blocks,layers,2,Hkv,BLOCK,Dp) of the keys' type, contiguous.
  const balora_view* const* chunks;
  int32_t chunk_count;
  int32_t layer;
  const balora_view* lengths;  // (B) i32: positions of each sequence
  // (B,W) i32: the blocks of each sequence, from block first_blocks[b] of its positions on
  const balora_view* tables;
  const balora_view* first_blocks;  // (B) i32: the blocks before are not kept; null: all are
} balora_kv_cache;

// Writes the keys and values of the newest positions of each sequence: rows [cu_rows[b],
// cu_rows[b+1]) are those of its last positions. Positions whose blocks are not kept are left out.
typedef struct balora_cache_append {
  const balora_view* k;        // (N,Hkv,D) rows strided
  const balora_view* v;        // (N,Hkv,D) rows strided
  const balora_view* cu_rows;  // (B+1) i32
  const balora_kv_cache* cache;
} balora_cache_append;

// Attention of rows to what a cache holds of their sequences, by head. The heads of a group share a
// head of keys and values:
//
//   out = softmax(scores) v,  scores = softcap * tanh(scale q k^T / softcap) + bias[t - j]
//
// (softcap 0: scale q k^T), and sinks as above. Causal rows are the last positions of their
// sequence, and row t sees the keys j <= t of which, with a window W > 0, the last W; others see
// every key. What a row gets depends on its own sequence alone, bit for bit.
typedef struct balora_cached_attention {
  const balora_view* q;        // (N,H,D) rows strided
  const balora_view* cu_rows;  // (B+1) i32
  const balora_kv_cache* cache;
  const balora_view* bias;   // (R,H) of q's type, R no less than any length; causal only; or null
  const balora_view* sinks;  // (H) f32 (f64 for f64); null: none
  const balora_view* out;    // (N,H,D) contiguous
  double scale;
  double softcap;  // 0: none
  int64_t window;  // 0: none
  int32_t causal;
} balora_cached_attention;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using Relative = balora_relative;
using RelativeGradients = balora_relative_gradients;
}  // namespace balora
#endif

// The rows of this family (kernels.def).
#define BALORA_ATTENTION_KERNELS(KERNEL) \
  KERNEL(rope)                           \
  KERNEL(attention_forward)              \
  KERNEL(attention_backward)             \
  KERNEL(relative_attention_forward)     \
  KERNEL(relative_attention_backward)    \
  KERNEL(cache_append)                   \
  KERNEL(cached_attention)
