// Run-time dispatch on CPU features without -march=native: a function marked BALORA_SIMD is
// compiled for each level and the loader picks one. It only works for code inlined into that
// function, so mark plain row loops and call them from parallel_for with a range; lambdas inside an
// OpenMP region would be compiled for the baseline.
#pragma once

// BALORA_SIMD_LEVEL: one level for all, for tests of what the loader would not pick.
#if defined(BALORA_SIMD_LEVEL)
#define BALORA_SIMD __attribute__((target("arch=" BALORA_SIMD_LEVEL)))
#elif defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(BALORA_SANITIZED)
#define BALORA_SIMD __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define BALORA_SIMD
#endif

#define BALORA_INLINE inline __attribute__((always_inline))
