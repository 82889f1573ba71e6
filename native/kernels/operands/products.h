// Operands of matrix products (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// c = alpha * a b, accumulated in f32 (f64 for f64). Any strides; batch dimensions of a and b may
// have stride 0.
typedef struct balora_matmul {
  const balora_view* a;  // (...,M,K)
  const balora_view* b;  // (...,K,N)
  const balora_view* c;  // (...,M,N) contiguous
  double alpha;
} balora_matmul;

#ifdef __cplusplus
}  // extern "C"
#endif

// The rows of this family (kernels.def).
#define BALORA_PRODUCTS_KERNELS(KERNEL) KERNEL(matmul)
