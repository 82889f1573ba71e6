// Linears with low-rank parts (kernels/operands/linear.h). The base and the low-rank part meet in
// one f32 sum that is rounded once; the gradient of a shared input is one such sum over
// every linear.
#include "kernels/cpu/linear/linear_tiles.h"
#include "kernels/cpu/linear/linear_wide.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

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

}  // namespace

int32_t linear_forward_kernel(Context* ctx, const balora_linear_forward& o) {
  const std::span<const LinearOperands> group(o.linears, static_cast<size_t>(o.count));
  Int8Form form = {.int8 = o.int8};
  if (o.x_codes) {
    form.rows = {data_of<uint8_t>(o.x_codes), o.x_codes->shape[1], data_of<float>(o.x_scales)};
  }
  const bool fits = linear_fits_tiles(*o.x, group);
  const auto forward = fits ? &linear_forward_tiles : &linear_forward_wide;
  forward(ctx, *o.x, o.x_adapter, group, form, o.batch_invariant != 0);
  return 0;
}

int32_t linear_backward_kernel(Context* ctx, const balora_linear_backward& o) {
  const std::span<const LinearOperands> group(o.linears, static_cast<size_t>(o.count));
  const bool tiles = linear_fits_tiles(dense_or_encoded(o.linears[0].weight), group);
  const auto backward = tiles ? &linear_backward_tiles : &linear_backward_wide;
  backward(ctx, {o.x, o.x_adapter, o.dx, o.dx_adapter, o.int8}, group);
  return 0;
}

int32_t linear_weight_backward_kernel(Context* ctx, const balora_linear_weight_backward& o) {
  const int64_t rows = o.dy->shape[0], out = o.dy->shape[1];
  if (o.dweight) {
    const int64_t in = o.x->shape[1];
    gemm(ctx, {out, in, rows}, {o.dy->data, o.dy->dtype, out, true}, {o.x->data, o.x->dtype, in},
         dense_output(*o.dweight));
  }
  if (o.dbias) {
    dispatch_float(o.dy->dtype, [&]<typename T>() {
      parallel_for(ctx, out, 64, [&](int64_t begin, int64_t end) {
        at_level<&sum_rows<T>>(data_of<T>(o.dy), data_of<Acc<T>>(o.dbias), rows, out, begin, end);
      });
    });
  }
  return 0;
}

}  // namespace balora
