// softmax and logSoftmax over the last dimension. The backward recomputes the probabilities from x
// and the row's log-sum-exp rather than from a rounded y, so bf16 loses nothing twice.
//   softmax:    dx = p * (dy - sum(dy * p))
//   logSoftmax: dx = dy - p * sum(dy)
#include "kernels/cpu/norm/log_sum_exp.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/norm.h"

namespace balora {
namespace {

template <typename T, typename A = Acc<T>>
BALORA_INLINE void forward_rows(const balora_softmax_forward& o, int64_t begin, int64_t end) {
  const int64_t size = o.x->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const T* row = data_of<T>(o.x) + n * size;
    T* out = data_of<T>(o.y) + n * size;
    const double exact = row_log_sum_exp(row, size);
    const A sum = static_cast<A>(exact);
    data_of<A>(o.lse)[n] = sum;
    if (o.logarithm) {
      const A rest = static_cast<A>(exact - static_cast<double>(sum));
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) out[i] = store<T>(load(row[i]) - sum - rest);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) out[i] = store<T>(vexp(load(row[i]) - sum));
    }
  }
}

template <typename T, typename A = Acc<T>>
BALORA_INLINE void backward_rows(const balora_softmax_backward& o, int64_t begin, int64_t end) {
  const int64_t size = o.x->shape[1];
  const bool logarithm = o.logarithm != 0;
  for (int64_t n = begin; n < end; ++n) {
    const T *g = data_of<T>(o.dy) + n * size, *row = data_of<T>(o.x) + n * size;
    T* out = data_of<T>(o.dx) + n * size;
    const A lse = data_of<A>(o.lse)[n];
    double total = 0;  // sum(dy), or sum(dy * p)
    for (int64_t start = 0; start < size; start += kSumBlock) {
      const int64_t stop = std::min(size, start + kSumBlock);
      A sum = 0;
      if (logarithm) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < stop; ++i) sum += load(g[i]);
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < stop; ++i) sum += load(g[i]) * vexp(load(row[i]) - lse);
      }
      total += static_cast<double>(sum);
    }
    const A sum = static_cast<A>(total);
    if (logarithm) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        out[i] = store<T>(log_softmax_gradient(load(g[i]), vexp(load(row[i]) - lse), sum));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        out[i] = store<T>(softmax_gradient(load(g[i]), vexp(load(row[i]) - lse), sum));
      }
    }
  }
}

}  // namespace

int32_t softmax_forward_kernel(Context* ctx, const balora_softmax_forward& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    parallel_for(ctx, o.x->shape[0], 1,
                 [&](int64_t begin, int64_t end) { at_level<&forward_rows<T>>(o, begin, end); });
  });
  return 0;
}

int32_t softmax_backward_kernel(Context* ctx, const balora_softmax_backward& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    parallel_for(ctx, o.x->shape[0], 1,
                 [&](int64_t begin, int64_t end) { at_level<&backward_rows<T>>(o, begin, end); });
  });
  return 0;
}

}  // namespace balora
