// Operands of linear algebra (kernels.def has the rules). K = min(M,N). Results are computed in f64
// from any float type and rounded once.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// One decomposition of randomized_svds or trailing_svds: R triplets of a, u diag(s) vt. The seed is
// of the random start.
typedef struct balora_svd_task {
  const balora_view* a;   // (M,N)
  const balora_view* u;   // (M,R), R <= K
  const balora_view* s;   // (R)
  const balora_view* vt;  // (R,N)
  uint64_t seed;
} balora_svd_task;

// a = q r
typedef struct balora_qr {
  const balora_view* a;  // (M,N)
  const balora_view* q;  // (M,K), columns orthonormal
  const balora_view* r;  // (K,N) upper triangular, diagonal >= 0
} balora_qr;

// Eigenvalues and eigenvectors of a symmetric matrix, of which the lower triangle is read.
typedef struct balora_eigh {
  const balora_view* a;        // (N,N)
  const balora_view* values;   // (N) ascending
  const balora_view* vectors;  // (N,N) in columns, or null
} balora_eigh;

// a = u diag(s) vt
typedef struct balora_svd {
  const balora_view* a;   // (M,N)
  const balora_view* u;   // (M,K), or null
  const balora_view* s;   // (K) descending
  const balora_view* vt;  // (K,N), or null
} balora_svd;

// Low-rank decompositions of any number of matrices (Halko, Martinsson and Tropp 2011). Large f32,
// bf16 and f16 matrices are decomposed in f32 where the numbers allow it.
typedef struct balora_randomized_svds {
  const balora_svd_task* tasks;
  int32_t count;  // of tasks
  // Power iterations; negative: until |A - U S Vt|_F <= optimum (1 + 1e-5) + 1e-6 |A|_F.
  int64_t niter;
  int64_t oversample;  // columns beyond the rank
} balora_randomized_svds;

// The last R singular triplets of any number of matrices, in f64.
typedef struct balora_trailing_svds {
  const balora_svd_task* tasks;
  int32_t count;  // of tasks
} balora_trailing_svds;

// One analysis of pca_updates: what is known of the rows before, and of them and x together. All
// but x is f32.
typedef struct balora_pca_task {
  const balora_view* x;            // (N,C), N >= R
  const balora_view* vectors;      // (P,C), this and the next three null where x has the first rows
  const balora_view* singular;     // (R)
  const balora_view* mean;         // (C)
  const balora_view* scatter;      // (1)
  const balora_view* new_vectors;  // (P,C), P >= R: R components, and where the next search begins
  const balora_view* new_singular;  // (R) descending
  const balora_view* new_mean;      // (C)
  const balora_view* new_scatter;   // (1): sum of squares of all centred rows
  const balora_view* ratios;        // (R) share of each component in it
  const balora_view* cosines;  // (R) of each component with the one before; 0 for the first rows
  int64_t count;               // of the rows before
  uint64_t seed;
} balora_pca_task;

// Incremental principal component analyses (Ross et al. 2008), any number at once. The components
// are the leading right singular vectors of the components before times their singular values, the
// rows less their mean, and the correction of the mean; their largest elements are positive. Rows
// of new_vectors behind the first R are orthonormal to them, or 0.
typedef struct balora_pca_updates {
  const balora_pca_task* tasks;
  int32_t count;  // of tasks
} balora_pca_updates;

// g = a^T a, summed in f64. Of rows times `scale`, products may be in f32 and summed in f32 over at
// most 256 rows.
typedef struct balora_gram {
  const balora_view* a;      // (N,C)
  const balora_view* scale;  // (N) f32; null: none
  const balora_view* g;      // (C,C) f64
  int32_t accumulate;        // non-zero: g += a^T a
} balora_gram;

// The gradient of qr.
typedef struct balora_qr_backward {
  const balora_view* q;
  const balora_view* r;
  const balora_view* dq;  // null: not used
  const balora_view* dr;  // null: not used
  const balora_view* da;
} balora_qr_backward;

// The gradient of eigh.
typedef struct balora_eigh_backward {
  const balora_view* values;
  const balora_view* vectors;
  const balora_view* dvalues;   // null: not used
  const balora_view* dvectors;  // null: not used
  const balora_view* da;
} balora_eigh_backward;

// The gradient of svd.
typedef struct balora_svd_backward {
  const balora_view* u;
  const balora_view* s;
  const balora_view* vt;
  const balora_view* du;   // null: not used
  const balora_view* ds;   // null: not used
  const balora_view* dvt;  // null: not used
  const balora_view* da;
} balora_svd_backward;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using SvdOperands = balora_svd_task;
using PcaOperands = balora_pca_task;
}  // namespace balora
#endif

// The rows of this family (kernels.def).
#define BALORA_LINALG_KERNELS(KERNEL) \
  KERNEL(qr)                          \
  KERNEL(eigh)                        \
  KERNEL(svd)                         \
  KERNEL(randomized_svds)             \
  KERNEL(trailing_svds)               \
  KERNEL(pca_updates)                 \
  KERNEL(gram)                        \
  KERNEL(qr_backward)                 \
  KERNEL(eigh_backward)               \
  KERNEL(svd_backward)
