// Operands of the kernels of ops that choose by indices: one structure a kernel, read
// by native/ops, kernels/cpu and cuda. Plain C, since it crosses the plug-in's boundary; a change
// of a structure needs a new BALORA_ABI (kernel_table.h). A field that is left out is null or 0.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// indices are i32 or i64, and one out of range fails the kernel
// table (V,C) any dtype, ids (N) -> y (N,C)
typedef struct balora_select_rows {
  const balora_view* table;
  const balora_view* ids;
  const balora_view* y;
} balora_select_rows;

// dy (N,C), ids (N) -> dx (V,C) in dy's dtype or in f32 (f64 for f64); rows that no id names are
// zero
typedef struct balora_select_rows_backward {
  const balora_view* dy;
  const balora_view* ids;
  const balora_view* dx;
} balora_select_rows_backward;

// x (A,R,C), index (A,K,C) -> y (A,K,C) = x[a, index, c]
typedef struct balora_gather {
  const balora_view* x;
  const balora_view* index;
  const balora_view* y;
} balora_gather;

// y (A,R,C) = base (zero where null), then y[a, index, c] += source[a, k, c], in the order of k
typedef struct balora_scatter_add {
  const balora_view* base;
  const balora_view* index;
  const balora_view* source;
  const balora_view* y;
} balora_scatter_add;

#ifdef __cplusplus
}  // extern "C"
#endif
