// Operands of random numbers (kernels.def has the rules). Element i of (seed, stream) depends on
// nothing else.
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = 32-bit words
typedef struct balora_random_words {
  const balora_view* y;  // i64
  uint64_t seed;
  uint64_t stream;
} balora_random_words;

// y in [low, high)
typedef struct balora_random_uniform {
  const balora_view* y;
  uint64_t seed;
  uint64_t stream;
  double low;
  double high;
} balora_random_uniform;

// y normal
typedef struct balora_random_normal {
  const balora_view* y;
  uint64_t seed;
  uint64_t stream;
  double mean;
  double deviation;  // standard deviation
} balora_random_normal;

// y = 0 with probability p, else x / (1 - p); its own backward.
typedef struct balora_dropout {
  const balora_view* x;
  const balora_view* y;
  uint64_t seed;
  uint64_t stream;
  double p;
} balora_dropout;

#ifdef __cplusplus
}  // extern "C"
#endif

// The rows of this family (kernels.def).
#define BALORA_RANDOM_KERNELS(KERNEL) \
  KERNEL(random_words)                \
  KERNEL(random_uniform)              \
  KERNEL(random_normal)               \
  KERNEL(dropout)
