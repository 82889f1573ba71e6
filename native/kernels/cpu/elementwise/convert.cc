// convert.h: one vectorised loop per pair of types.
#include "kernels/cpu/elementwise/convert.h"

#include <algorithm>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int64_t kGrainElements = 1 << 15;

template <typename From, typename To>
BALORA_INLINE void convert_loop(const From* from, To* to, int64_t cols) {
#pragma omp simd
  for (int64_t j = 0; j < cols; ++j) {
    to[j] = store<To>(static_cast<Acc<To>>(load(from[j])));
  }
}

}  // namespace

template <typename From, typename To>
void convert_row(const From* from, To* to, int64_t n) {
  at_level<&convert_loop<From, To>>(from, to, n);
}
#define FROM(From)                                         \
  template void convert_row(const From*, float*, int64_t); \
  template void convert_row(const From*, bf16*, int64_t);  \
  template void convert_row(const From*, f16*, int64_t);   \
  template void convert_row(const From*, double*, int64_t);
FROM(float)
FROM(bf16)
FROM(f16)
FROM(double)
#undef FROM

void convert_rows(Context* ctx, const SourceRows& from, const ResultRows& to, int64_t rows,
                  int64_t cols) {
  dispatch_float(from.dtype, [&]<typename From>() {
    dispatch_float(to.dtype, [&]<typename To>() {
      parallel_for(ctx, rows, grain_of(kGrainElements, cols), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          convert_row(static_cast<const From*>(from.data) + i * from.stride,
                      static_cast<To*>(to.data) + i * to.stride, cols);
        }
      });
    });
  });
}

}  // namespace balora
