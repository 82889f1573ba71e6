// Static work sharing over OpenMP: the same thread count always gives the same split, so a kernel
// whose blocks are independent (or summed in block order) is bitwise repeatable.
#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels/kernel_table.h"

namespace balora {

// Threads that parallel_for will use for n items of which at least `grain` should go to one thread.
inline int parallel_width(const Context* ctx, int64_t n, int64_t grain) {
  const int64_t wanted = (n + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max(ctx->num_threads, 1)));
}

// How evenly n items share out among threads: 1 if each has as many.
inline double evenness(int64_t n, int64_t threads) {
  const int64_t most = (n + threads - 1) / threads;  // items of one thread
  return static_cast<double>(n) / static_cast<double>(most * threads);
}

// Calls body(begin, end) on disjoint ranges that cover [0, n). The ranges depend on n, grain and
// the number of threads only. body must not throw.
template <typename Body>
void parallel_for(const Context* ctx, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int width = parallel_width(ctx, n, grain);
  if (width == 1) {
    body(int64_t{0}, n);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(width) schedule(static, 1)
#endif
  for (int part = 0; part < width; ++part) {
    body(n * part / width, n * (part + 1) / width);
  }
}

}  // namespace balora
