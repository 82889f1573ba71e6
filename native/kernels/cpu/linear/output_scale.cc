// output_scale.h: one pass over the rows of the sum.
#include "kernels/cpu/linear/output_scale.h"

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

constexpr int64_t kGrain = 1 << 13;

// `sum` may be y.
template <typename T>
BALORA_INLINE void scale_range(const Acc<T>* sum, const Acc<T>* scale, const T* bias, T* unscaled,
                               T* y, int64_t n) {
  if (unscaled) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) unscaled[c] = store<T>(sum[c]);
  }
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    const Acc<T> value = sum[c] * scale[c];
    y[c] = store<T>(bias ? value + load(bias[c]) : value);
  }
}

template <typename T>
void scale_row(const Acc<T>* sum, const Acc<T>* scale, const T* bias, T* unscaled, T* y,
               int64_t n) {
  at_level<&scale_range<T>>(sum, scale, bias, unscaled, y, n);
}

}  // namespace

View sum_before_scale(Context* ctx, const LinearOperands& linear) {
  View sum = *linear.y;
  if (sum.dtype == BALORA_F32 || sum.dtype == BALORA_F64) return sum;
  sum.dtype = BALORA_F32;
  sum.data = workspace<float>(ctx, view_numel(sum));
  return sum;
}

void apply_output_scale(Context* ctx, const LinearOperands& linear, const View& sum) {
  const int64_t rows = sum.shape[0], columns = sum.shape[1];
  dispatch_float(linear.y->dtype, [&]<typename T>() {
    const Acc<T>* const from = data_of<Acc<T>>(&sum);
    const T* const bias = data_of<T>(linear.bias);
    T* const unscaled = data_of<T>(linear.unscaled);
    parallel_for(ctx, rows, kGrain / (columns + 1), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * columns;
        scale_row(from + at, data_of<Acc<T>>(linear.output_scale), bias,
                  unscaled ? unscaled + at : nullptr, data_of<T>(linear.y) + at, columns);
      }
    });
  });
}

}  // namespace balora
