// The row statistics of a softmax. Over a vocabulary of 49k an f32 running sum reads the
// log-sum-exp 1e-5 low, so the sums go in blocks that f32 holds well, and the blocks
// are added in double.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/vec_math.h"

namespace balora {

constexpr int64_t kSumBlock = 512;

template <typename T>
BALORA_INLINE Acc<T> row_max(const T* row, int64_t size) {
  using A = Acc<T>;
  A highest = -INFINITY;
#pragma omp simd reduction(max : highest)
  for (int64_t i = 0; i < size; ++i) highest = std::max(highest, A(load(row[i])));
  return highest;
}

// ln(sum exp(row)); a NaN anywhere in the row comes out as NaN.
template <typename T>
BALORA_INLINE double row_log_sum_exp(const T* row, int64_t size) {
  using A = Acc<T>;
  const A highest = row_max(row, size);
  double total = 0;
  for (int64_t start = 0; start < size; start += kSumBlock) {
    const int64_t stop = std::min(size, start + kSumBlock);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < stop; ++i) sum += vexp(load(row[i]) - highest);
    total += static_cast<double>(sum);
  }
  return static_cast<double>(highest) + std::log(total);
}

}  // namespace balora
