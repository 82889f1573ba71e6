// Marks of code that the CPU's compiler and the GPU's both compile. A header of kernels/shared has
// what all devices know: formulas, dispatch by dtype, checks and their messages.
#pragma once

// A function that kernels of every device inline.
#if defined(__CUDACC__)
#define BALORA_HOST_DEVICE __host__ __device__ inline
#else
#define BALORA_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Before a loop: on the GPU all of it is unrolled, so that arrays indexed by it live in registers.
#if defined(__CUDA_ARCH__)
#define BALORA_UNROLL _Pragma("unroll")
#else
#define BALORA_UNROLL
#endif
