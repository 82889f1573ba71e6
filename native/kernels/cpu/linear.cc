// Linears with low-rank parts (kernels/linear.h). The base and the low-rank part meet in one f32
// sum that is rounded once; the gradient of a shared input is one such sum over every linear.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/linear_tiles.h"
#include "kernels/cpu/linear_wide.h"
#include "kernels/cpu/parallel.h"

namespace balora {
namespace {

template <typename T>
BALORA_INLINE void sum_rows(const T* dy, Acc<T>* out, int64_t rows, int64_t cols, int64_t begin,
                            int64_t end) {
  for (int64_t j = begin; j < end; ++j) out[j] = 0;
  for (int64_t i = 0; i < rows; ++i) {
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) out[j] += load(dy[i * cols + j]);
  }
}
#define ROWS(T)                                                                                 \
  BALORA_SIMD void sum_columns(const T* dy, Acc<T>* out, int64_t rows, int64_t cols, int64_t b, \
                               int64_t e) {                                                     \
    sum_rows<T>(dy, out, rows, cols, b, e);                                                     \
  }
ROWS(float)
ROWS(bf16)
ROWS(f16)
ROWS(double)
#undef ROWS

}  // namespace

int32_t linear_forward_kernel(Context* ctx, const View* x, const View* x_adapter,
                              const LinearOperands* linears, int32_t count,
                              const LowRankOperands* parts, int32_t part_count) {
  const std::span<const LinearOperands> group(linears, static_cast<size_t>(count));
  const auto forward = linear_fits_tiles(*x, group) ? &linear_forward_tiles : &linear_forward_wide;
  forward(ctx, *x, x_adapter, group, {parts, static_cast<size_t>(part_count)});
  return 0;
}

int32_t linear_backward_kernel(Context* ctx, const View* x, const View* x_adapter, const View* dx,
                               const View* dx_adapter, const LinearOperands* linears, int32_t count,
                               const LowRankOperands* parts, int32_t part_count) {
  const std::span<const LinearOperands> group(linears, static_cast<size_t>(count));
  const bool tiles = linear_fits_tiles(*linears[0].weight, group);
  const auto backward = tiles ? &linear_backward_tiles : &linear_backward_wide;
  backward(ctx, {x, x_adapter, dx, dx_adapter}, group, {parts, static_cast<size_t>(part_count)});
  return 0;
}

int32_t linear_weight_backward_kernel(Context* ctx, const View* dy, const View* x,
                                      const View* dweight, const View* dbias) {
  const int64_t rows = dy->shape[0], out = dy->shape[1];
  if (dweight) {
    const int64_t in = x->shape[1];
    gemm(ctx, {out, in, rows}, {dy->data, dy->dtype, out, true}, {x->data, x->dtype, in},
         dense_output(*dweight));
  }
  if (dbias) {
    dispatch_float(dy->dtype, [&]<typename T>() {
      parallel_for(ctx, out, 64, [&](int64_t begin, int64_t end) {
        sum_columns(data_of<T>(dy), data_of<Acc<T>>(dbias), rows, out, begin, end);
      });
    });
  }
  return 0;
}

}  // namespace balora
