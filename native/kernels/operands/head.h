// Operands of the language model's head and its losses (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "kernels/shared/op_codes.h"
#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// Scalars of the fused head losses.
typedef struct balora_head_options {
  double task_scale;  // factor of each row's term in the differentiated loss; the caller has
                      // divided by counts
  double consistency_scale;
  double diversity_scale;
  double temperature;          // T of the consistency term
  double entropy_temperature;  // of the distribution whose entropy is taken; 1 in the loss
  double softcap;         // logits = softcap * tanh(logit_scale h w / softcap); 0: logit_scale h w
  double logit_scale;     // 0: 1
  int64_t entropy_top_k;  // K of the entropy; 0 or >= V: the whole vocabulary; negative: no entropy
  int64_t chunk_bytes;    // bound on the scratch for a chunk's logits; 0: the device's choice
} balora_head_options;

// loss = lse - logits[target], by row or reduced. A target of BALORA_IGNORED_TARGET does not count.
typedef struct balora_cross_entropy_forward {
  const balora_view* logits;   // (N,V)
  const balora_view* targets;  // (N) i32
  const balora_view* loss;     // (N) without a reduction, else (); f32 (f64 for f64)
  const balora_view* lse;      // (N) f32 (f64 for f64)
  balora_reduction reduction;
} balora_cross_entropy_forward;

// The gradient of cross-entropy.
typedef struct balora_cross_entropy_backward {
  const balora_view* dloss;    // (N) or (), f32 (f64 for f64)
  const balora_view* logits;   // (N,V)
  const balora_view* targets;  // (N) i32
  const balora_view* lse;      // (N)
  const balora_view* dlogits;  // (N,V)
  balora_reduction reduction;
} balora_cross_entropy_backward;

// The terms of the head losses: columns of their rows, elements of their sums, and elements of
// their scales (the entropy's is the diversity scale).
enum { BALORA_HEAD_TASK, BALORA_HEAD_CONSISTENCY, BALORA_HEAD_ENTROPY, BALORA_HEAD_TERMS };
// The element of the sums behind those of the terms, and the number of all.
enum { BALORA_HEAD_LOSS = BALORA_HEAD_TERMS, BALORA_HEAD_SUMS };

// The forms of a teacher. NONE: there is no consistency term. SUMMARY: the student's head is frozen
// and linear.
typedef enum {
  BALORA_TEACHER_NONE,
  BALORA_TEACHER_LIVE,
  BALORA_TEACHER_SUMMARY
} balora_teacher_kind;

// A teacher by its hidden states, or by what a consistency term needs of them. With
// q = softmax(hidden head^T / T) and the student's head w:
//   mean = sum_j q_j w_j
//   entropy = -sum_j q_j log q_j
typedef struct balora_teacher {
  balora_teacher_kind kind;
  const balora_view* hidden;   // (M,C) of LIVE
  const balora_view* head;     // (V,C) of LIVE; null: the student's
  const balora_view* mean;     // (M,C) f32 (f64 for f64) of SUMMARY
  const balora_view* entropy;  // (M) f64 of SUMMARY
  const balora_view*
      log_probability;  // (M) f64 of SUMMARY: the target's at T = 1, 0 without one; or
                        // null. No loss reads it
} balora_teacher;

// The head of a language model with its losses, a chunk of rows at a time: no (M,V) tensor exists.
//   loss = sum over rows of factor (task_scale task + consistency_scale consistency
//                                   - diversity_scale entropy)
typedef struct balora_head_losses {
  const balora_view* h;  // (M,C) the student's hidden states
  const balora_view* w;  // (V,C) the head
  balora_teacher teacher;
  const balora_view* targets;      // (M) i32, -100: a row without a task term; null: no row has one
  const balora_view* regularized;  // (M) u8: rows with regularizers; null: all
  const balora_view* scales;       // (3) f64, multiplied into the three scales of the options: they
                                   // change while a graph is run again; null: ones
  const balora_view* factors;      // (M) f64, of each row in the loss and its gradients; null: ones
  const balora_view* sums;         // (4) f64 = task, consistency, entropy, unscaled, and the loss
  const balora_view* rows;         // (M,3) f64, the three terms by row; or null
  const balora_view* dh;           // (M,C) the loss's gradient, or null
  const balora_view* dw;           // (V,C), or null, as beside a teacher's summary
  balora_head_options options;
} balora_head_losses;

// The summary of a live teacher.
typedef struct balora_teacher_summary {
  balora_teacher teacher;      // LIVE
  const balora_view* w;        // (V,C) the student's head
  const balora_view* targets;  // (M) i32, as beside the losses; null: no log-probability is wanted
  balora_teacher summary;      // written
  balora_head_options options;
} balora_teacher_summary;

// The SVD term of logits h W^T, through the Gram matrix of the head:
//   value = -(sum of the k largest singular values) / norm
typedef struct balora_svd_ratio_gram {
  const balora_view* h;      // (M,C)
  const balora_view* g;      // (C,C) f64 = W^T W
  const balora_view* value;  // () f64
  const balora_view* dh;     // (M,C), or null
  int64_t k;
  int32_t nuclear;  // non-zero: the norm is the sum of all singular values, else Frobenius's
} balora_svd_ratio_gram;

// The same of logits softcap * tanh(h w^T / softcap), tile by tile.
typedef struct balora_svd_ratio_tiles {
  const balora_view* h;      // (M,C)
  const balora_view* w;      // (V,C)
  const balora_view* value;  // () f64
  const balora_view* dh;     // (M,C), or null
  const balora_view* dw;     // (V,C), or null
  int64_t k;
  int32_t nuclear;
  double softcap;  // 0: plain logits
  int64_t chunk_bytes;
} balora_svd_ratio_tiles;

// s = the singular values of H W^T, descending.
typedef struct balora_gram_spectrum {
  const balora_view* m;  // (C,C) f64 = H^T H
  const balora_view* g;  // (C,C) f64 = W^T W
  const balora_view* s;  // (C) f64
} balora_gram_spectrum;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using HeadOptions = balora_head_options;
}  // namespace balora
#endif

// The rows of this family (kernels.def).
#define BALORA_HEAD_KERNELS(KERNEL) \
  KERNEL(cross_entropy_forward)     \
  KERNEL(cross_entropy_backward)    \
  KERNEL(head_losses)               \
  KERNEL(teacher_summary)           \
  KERNEL(svd_ratio_gram)            \
  KERNEL(svd_ratio_tiles)           \
  KERNEL(gram_spectrum)
