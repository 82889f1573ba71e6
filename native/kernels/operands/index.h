// Operands of ops that choose by indices (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// y[n] = table[ids[n]]. An index out of range fails the kernel.
typedef struct balora_select_rows {
  const balora_view* table;  // (V,C) any type
  const balora_view* ids;    // (N) i32 or i64
  const balora_view* y;      // (N,C)
} balora_select_rows;

// dx[ids[n]] += dy[n]; rows that no id names are zero.
typedef struct balora_select_rows_backward {
  const balora_view* dy;   // (N,C)
  const balora_view* ids;  // (N) i32 or i64
  const balora_view* dx;   // (V,C) in dy's type or in f32 (f64 for f64)
} balora_select_rows_backward;

// y[a,k,c] = x[a, index[a,k,c], c]. An index out of range fails the kernel.
typedef struct balora_gather {
  const balora_view* x;      // (A,R,C)
  const balora_view* index;  // (A,K,C) i32 or i64
  const balora_view* y;      // (A,K,C)
} balora_gather;

// In the order of k:
//   y = base
//   y[a, index[a,k,c], c] += source[a,k,c]
typedef struct balora_scatter_add {
  const balora_view* base;    // (A,R,C); null: zeros
  const balora_view* index;   // (A,K,C) i32 or i64
  const balora_view* source;  // (A,K,C)
  const balora_view* y;       // (A,R,C)
} balora_scatter_add;

#ifdef __cplusplus
}  // extern "C"
#endif

// The rows of this family (kernels.def).
#define BALORA_INDEX_KERNELS(KERNEL) \
  KERNEL(select_rows)                \
  KERNEL(select_rows_backward)       \
  KERNEL(gather)                     \
  KERNEL(scatter_add)
