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

// target_clones cannot mark a template, so each pair gets a plain function of its own.
#define PAIR(From, To)                                               \
  BALORA_SIMD void convert(const From* from, To* to, int64_t cols) { \
    convert_loop(from, to, cols);                                    \
  }
#define PAIRS(From) PAIR(From, float) PAIR(From, bf16) PAIR(From, f16) PAIR(From, double)
PAIRS(float)
PAIRS(bf16)
PAIRS(f16)
PAIRS(double)
#undef PAIRS
#undef PAIR

}  // namespace

template <typename From, typename To>
void convert_row(const From* from, To* to, int64_t n) {
  convert(from, to, n);
}
#define PAIR(From, To) template void convert_row<From, To>(const From*, To*, int64_t);
#define PAIRS(From) PAIR(From, float) PAIR(From, bf16) PAIR(From, f16) PAIR(From, double)
PAIRS(float)
PAIRS(bf16)
PAIRS(f16)
PAIRS(double)
#undef PAIRS
#undef PAIR

void convert_rows(Context* ctx, const void* from, int32_t from_dtype, int64_t from_ld, void* to,
                  int32_t to_dtype, int64_t to_ld, int64_t rows, int64_t cols) {
  dispatch_float(from_dtype, [&]<typename From>() {
    dispatch_float(to_dtype, [&]<typename To>() {
      const auto range = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          convert(static_cast<const From*>(from) + i * from_ld, static_cast<To*>(to) + i * to_ld,
                  cols);
        }
      };
      if (!ctx) return range(0, rows);
      parallel_for(ctx, rows, std::max<int64_t>(kGrainElements / std::max<int64_t>(cols, 1), 1),
                   range);
    });
  });
}

}  // namespace balora
