// Linears with low-rank parts (kernels/operands/linear.h). The base and the low-rank part meet in
// one f32 sum that is rounded once; the gradient of a shared input is one such sum over
// every linear.
#include "kernels/cpu/linear/row_groups.h"
#include "kernels/cpu/linear/tiles.h"
#include "kernels/cpu/linear/wide.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
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

bool takes_forward(const balora_linear_forward& o) {
  return linear_fits_tiles(*o.x, linears_of(o));
}
bool takes_backward(const balora_linear_backward& o) {
  return linear_fits_tiles(dense_or_encoded(o.linears[0].weight), linears_of(o));
}

constexpr Implementation<balora_linear_forward> kForward[] = {
    {"tiles", platform::kBf16, takes_forward, linear_forward_tiles},
    {"wide", 0, nullptr, linear_forward_wide},
};
constexpr Implementation<balora_linear_backward> kBackward[] = {
    {"tiles", platform::kBf16, takes_backward, linear_backward_tiles},
    {"wide", 0, nullptr, linear_backward_wide},
};

}  // namespace

BALORA_IMPLEMENTATIONS(linear_forward, kForward)
BALORA_IMPLEMENTATIONS(linear_backward, kBackward)

int32_t linear_forward_kernel(Context* ctx, const balora_linear_forward& o) {
  if (!o.row_offsets) return run_first(kForward, ctx, o);
  for_row_groups(*o.row_offsets, o.x->shape[0], [&](RowGroup& group) {
    if (group.count() > 0) run_first(kForward, ctx, group.operands(o));
  });
  return 0;
}

int32_t linear_backward_kernel(Context* ctx, const balora_linear_backward& o) {
  if (!o.row_offsets) return run_first(kBackward, ctx, o);
  for_row_groups(*o.row_offsets, rows_of(o), [&](RowGroup& group) {
    balora_linear_backward one = group.operands(o);
    one.dx = group.rows(o.dx), one.dx_adapter = group.rows(o.dx_adapter);
    run_first(kBackward, ctx, one);
  });
  return 0;
}

int32_t linear_weight_backward_kernel(Context* ctx, const balora_linear_weight_backward& o) {
  if (o.row_offsets) {
    for_row_groups(*o.row_offsets, o.dy->shape[0], [&](RowGroup& group) {
      linear_weight_backward_kernel(ctx, {.dy = group.rows(o.dy),
                                          .x = group.rows(o.x),
                                          .dweight = group.own(o.dweight),
                                          .dbias = group.own(o.dbias)});
    });
    return 0;
  }
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
