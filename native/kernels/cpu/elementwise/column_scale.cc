// y = x * scale + bias over (N,C) rows: a factor and an offset a column. The factor is kept in the
// accumulator type (DoRA's magnitude over its norm); y is rounded once.
#include <algorithm>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int64_t kGrain = 1 << 13;

template <typename T>
BALORA_INLINE void scale_row(const T* x, const Acc<T>* scale, const T* bias, T* y, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    const Acc<T> value = load(x[c]) * scale[c];
    y[c] = store<T>(bias ? value + load(bias[c]) : value);
  }
}

// Adds the products and the values of one row to the sums of its columns.
template <typename T>
BALORA_INLINE void sum_row(const T* dy, const T* x, Acc<T>* dscale, Acc<T>* dbias, int64_t n) {
  if (dscale) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) dscale[c] += load(dy[c]) * load(x[c]);
  }
  if (dbias) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) dbias[c] += load(dy[c]);
  }
}

template <typename T>
void scale_rows(Context* ctx, const balora_column_scale_forward& o) {
  const int64_t rows = o.x->shape[0], columns = o.x->shape[1];
  parallel_for(ctx, rows, grain_of(kGrain, columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      at_level<&scale_row<T>>(data_of<T>(o.x) + r * columns, data_of<Acc<T>>(o.scale),
                              data_of<T>(o.bias), data_of<T>(o.y) + r * columns, columns);
    }
  });
}

}  // namespace

int32_t column_scale_forward_kernel(Context* ctx, const balora_column_scale_forward& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() { scale_rows<T>(ctx, o); });
  return 0;
}

int32_t column_scale_backward_kernel(Context* ctx, const balora_column_scale_backward& o) {
  dispatch_float(o.dy->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const int64_t rows = o.dy->shape[0], columns = o.dy->shape[1];
    if (o.dx) scale_rows<T>(ctx, {.x = o.dy, .scale = o.scale, .y = o.dx});
    if (!o.dscale && !o.dbias) return;
    // A column's sum is one thread's, over the rows in order.
    parallel_for(ctx, columns, grain_of(kGrain, rows), [&](int64_t begin, int64_t end) {
      A* products = o.dscale ? data_of<A>(o.dscale) + begin : nullptr;
      A* values = o.dbias ? data_of<A>(o.dbias) + begin : nullptr;
      if (products) std::fill_n(products, end - begin, A{0});
      if (values) std::fill_n(values, end - begin, A{0});
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = r * columns + begin;
        at_level<&sum_row<T>>(data_of<T>(o.dy) + at, products ? data_of<T>(o.x) + at : nullptr,
                              products, values, end - begin);
      }
    });
  });
  return 0;
}

}  // namespace balora
