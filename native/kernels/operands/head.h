// Operands of the kernels of the language model's head and its losses: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct balora_head_options {
  double task_scale;  // factor of each row's term in the differentiated loss; the caller has
                      // divided by counts
  double consistency_scale;
  double diversity_scale;
  double temperature;          // T of the consistency term
  double entropy_temperature;  // of the distribution whose entropy is taken; 1 in the loss
  double softcap;              // logits = softcap * tanh(h w / softcap); 0: none
  int64_t entropy_top_k;  // K of the entropy; 0 or >= V: the whole vocabulary; negative: no entropy
  int64_t chunk_bytes;  // bound on the scratch for the logits of the rows in work; 0: the device's
                        // choice
} balora_head_options;

// reduction 0 none, 1 sum, 2 mean over the rows whose target is not -100
// logits (N,V), targets (N) i32 -> loss (N) or (), lse (N), both in the accumulator type
typedef struct balora_cross_entropy_forward {
  const balora_view* logits;
  const balora_view* targets;
  const balora_view* loss;
  const balora_view* lse;
  int32_t reduction;
} balora_cross_entropy_forward;

// dloss (N) or () in the accumulator type, logits (N,V), targets (N), lse (N) -> dlogits (N,V)
typedef struct balora_cross_entropy_backward {
  const balora_view* dloss;
  const balora_view* logits;
  const balora_view* targets;
  const balora_view* lse;
  const balora_view* dlogits;
  int32_t reduction;
} balora_cross_entropy_backward;

// the language-model head with its losses; no (M,V) tensor exists.
// h, ht (M,C) student and teacher hidden (ht may be null: no consistency), w, wt (V,C) heads (wt
// null: w), targets (M) i32
// (-100 or null: row without task term), regularized (M) u8 (null: all rows), scales (3) f64 (null:
// ones), by which the three scales of the options are multiplied: what changes from step to step
// while a graph is run again -> sums (4) f64 = task, consistency, entropy, unscaled, and the loss
// task_scale task + consistency_scale consistency - diversity_scale entropy; rows (M,3) f64 a row
// (may be null); dh (M,C), dw (V,C) (may be null): gradients of the loss
typedef struct balora_head_losses {
  const balora_view* h;
  const balora_view* ht;
  const balora_view* w;
  const balora_view* wt;
  const balora_view* targets;
  const balora_view* regularized;
  const balora_view* scales;
  const balora_view* sums;
  const balora_view* rows;
  const balora_view* dh;
  const balora_view* dw;
  balora_head_options options;
} balora_head_losses;

// What a consistency term needs of a teacher: ht (M,C), wt (V,C) its head, w (V,C) the student's,
// linear and frozen -> mean (M,C) = sum_j q_j w_j, q = softmax(ht wt^T / T), in the accumulator
// type; entropy (M) f64 of q
typedef struct balora_teacher_summary {
  const balora_view* ht;
  const balora_view* wt;
  const balora_view* w;
  const balora_view* mean;
  const balora_view* entropy;
  balora_head_options options;
} balora_teacher_summary;

// head_losses with the teacher as its summary: a frozen head without soft-capping
typedef struct balora_head_losses_cached {
  const balora_view* h;
  const balora_view* mean;
  const balora_view* entropy;
  const balora_view* w;
  const balora_view* targets;
  const balora_view* regularized;
  const balora_view* scales;
  const balora_view* sums;
  const balora_view* dh;
  balora_head_options options;
} balora_head_losses_cached;

// h (M,C), g (C,C) f64 = W^T W -> value () f64 = -(sum of the k largest singular values of h W^T) /
// norm, dh (M,C) or null
typedef struct balora_svd_ratio_gram {
  const balora_view* h;
  const balora_view* g;
  const balora_view* value;
  const balora_view* dh;
  int64_t k;
  int32_t nuclear;
} balora_svd_ratio_gram;

// The same for logits softcap * tanh(h w^T / softcap) (0: plain), w (V,C); dh (M,C) and dw (V,C)
// may be null
typedef struct balora_svd_ratio_tiles {
  const balora_view* h;
  const balora_view* w;
  const balora_view* value;
  const balora_view* dh;
  const balora_view* dw;
  int64_t k;
  int32_t nuclear;
  double softcap;
  int64_t chunk_bytes;
} balora_svd_ratio_tiles;

// m (C,C) f64 = H^T H, g (C,C) f64 = W^T W -> s (C) f64, the singular values of H W^T, descending
typedef struct balora_gram_spectrum {
  const balora_view* m;
  const balora_view* g;
  const balora_view* s;
} balora_gram_spectrum;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using HeadOptions = balora_head_options;
}  // namespace balora
#endif
