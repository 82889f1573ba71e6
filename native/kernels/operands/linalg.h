// Operands of the kernels of linear algebra: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// a ~ u diag(s) vt. The seed is of the random start.
typedef struct balora_svd_task {
  const balora_view* a;   // (M,N)
  const balora_view* u;   // (M,R)
  const balora_view* s;   // (R)
  const balora_view* vt;  // (R,N)
  uint64_t seed;
} balora_svd_task;

// K = min(M,N). Computed in f64 from any float dtype, rounded once; outputs may be any float dtype.
// a (M,N) -> q (M,K) with orthonormal columns, r (K,N) upper triangular, diagonal >= 0
typedef struct balora_qr {
  const balora_view* a;
  const balora_view* q;
  const balora_view* r;
} balora_qr;

// a (N,N) symmetric, lower triangle read -> values (N) ascending, vectors (N,N) in columns, may be
// null
typedef struct balora_eigh {
  const balora_view* a;
  const balora_view* values;
  const balora_view* vectors;
} balora_eigh;

// a (M,N) -> u (M,K), s (K) descending, vt (K,N); u and vt may be null
typedef struct balora_svd {
  const balora_view* a;
  const balora_view* u;
  const balora_view* s;
  const balora_view* vt;
} balora_svd;

// Each a (M,N) -> u (M,R), s (R), vt (R,N), R <= K. niter power iterations; niter < 0: until
// |A - U S Vt|_F <= optimum (1 + 1e-5) + 1e-6 |A|_F. Large f32, bf16 and f16 matrices in f32 where
// the numbers allow it.
typedef struct balora_randomized_svds {
  const balora_svd_task* tasks;
  int32_t count;
  int64_t niter;
  int64_t oversample;
} balora_randomized_svds;

// a (N,C) -> g (C,C) f64 = a^T a, or g += a^T a with accumulate; sums in f64
typedef struct balora_gram {
  const balora_view* a;
  const balora_view* g;
  int32_t accumulate;
} balora_gram;

// gradients dq, dr, ... of the factors may be null where they were not used
typedef struct balora_qr_backward {
  const balora_view* q;
  const balora_view* r;
  const balora_view* dq;
  const balora_view* dr;
  const balora_view* da;
} balora_qr_backward;

typedef struct balora_eigh_backward {
  const balora_view* values;
  const balora_view* vectors;
  const balora_view* dvalues;
  const balora_view* dvectors;
  const balora_view* da;
} balora_eigh_backward;

typedef struct balora_svd_backward {
  const balora_view* u;
  const balora_view* s;
  const balora_view* vt;
  const balora_view* du;
  const balora_view* ds;
  const balora_view* dvt;
  const balora_view* da;
} balora_svd_backward;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using SvdOperands = balora_svd_task;
}  // namespace balora
#endif
