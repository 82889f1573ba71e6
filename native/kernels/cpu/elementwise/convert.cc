// convert.h: one vectorised loop per pair of types.
#include "kernels/cpu/elementwise/convert.h"

#include <algorithm>

#include "kernels/cpu/runtime/dispatch.h"
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

// PAIR(From, To) for each pair of float types.
#define PAIRS_FROM(PAIR, From) PAIR(From, float) PAIR(From, bf16) PAIR(From, f16) PAIR(From, double)
#define EACH_PAIR(PAIR) \
  PAIRS_FROM(PAIR, float) PAIRS_FROM(PAIR, bf16) PAIRS_FROM(PAIR, f16) PAIRS_FROM(PAIR, double)

// target_clones cannot mark a template, so each pair gets a plain function of its own.
#define CONVERT(From, To)                                            \
  BALORA_SIMD void convert(const From* from, To* to, int64_t cols) { \
    convert_loop(from, to, cols);                                    \
  }
EACH_PAIR(CONVERT)
#undef CONVERT

}  // namespace

template <typename From, typename To>
void convert_row(const From* from, To* to, int64_t n) {
  convert(from, to, n);
}
#define CONVERT_ROW(From, To) template void convert_row<From, To>(const From*, To*, int64_t);
EACH_PAIR(CONVERT_ROW)
#undef CONVERT_ROW
#undef EACH_PAIR
#undef PAIRS_FROM

void convert_rows(Context* ctx, const SourceRows& from, const ResultRows& to, int64_t rows,
                  int64_t cols) {
  dispatch_float(from.dtype, [&]<typename From>() {
    dispatch_float(to.dtype, [&]<typename To>() {
      const int64_t grain = std::max<int64_t>(kGrainElements / std::max<int64_t>(cols, 1), 1);
      parallel_for(ctx, rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          convert(static_cast<const From*>(from.data) + i * from.stride,
                  static_cast<To*>(to.data) + i * to.stride, cols);
        }
      });
    });
  });
}

}  // namespace balora
