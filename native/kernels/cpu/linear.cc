// Linears with low-rank parts (kernels/linear.h). The base and the low-rank part meet in one f32
// sum that is rounded once; the gradient of a shared input is one such sum over every linear.
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/linear_tiles.h"
#include "kernels/cpu/low_rank.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/product_sum.h"

namespace balora {
namespace {

GemmOutput dense(const View& y) {
  return {y.data, y.dtype, y.shape[1]};
}

ProductTerm base_term(const View& x, const View& weight, bool transposed) {
  return {x.data, x.dtype, x.shape[1], &weight, transposed};
}

// U (N,R) in f32 times a factor.
ProductTerm low_rank_term(const void* u, int64_t rank, const View& factor, bool transposed,
                          double scale) {
  return {u, factor.dtype, rank, &factor, transposed, scale};
}

// dU of each part, null where nothing wants it.
std::vector<void*> input_gradients(Context* ctx, const LinearOperands* linears,
                                   std::span<const LowRankOperands> parts, bool for_input) {
  std::vector<void*> du(parts.size(), nullptr);
  for (size_t p = 0; p < parts.size(); ++p) {
    const View* dy = linears[parts[p].linear].y;
    if (!dy || !(for_input || parts[p].da)) continue;
    const int64_t size = parts[p].b->dtype == BALORA_F64 ? 8 : 4;
    du[p] = ctx->workspace(ctx, static_cast<uint64_t>(dy->shape[0] * parts[p].b->shape[1] * size));
    if (!du[p]) throw std::bad_alloc();
    const Factor factor = {parts[p].b, false, parts[p].scale, du[p]};
    project(ctx, *dy, {&factor, 1});
  }
  return du;
}

void fill_zero(const View& view) {
  std::fill_n(static_cast<char*>(view.data),
              view_numel(view) * dtype_size(static_cast<DType>(view.dtype)), char{0});
}

void write_sum(Context* ctx, const View& out, std::span<const ProductTerm> terms) {
  if (terms.empty()) return fill_zero(out);
  sum_products(ctx, {out.shape[0], out.shape[1], terms}, dense(out));
}

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
  if (linear_fits_tiles(*x, group)) {
    linear_forward_tiles(ctx, *x, x_adapter, group, {parts, static_cast<size_t>(part_count)});
    return 0;
  }
  const View& input = x_adapter ? *x_adapter : *x;
  std::vector<Factor> factors;
  for (int32_t p = 0; p < part_count; ++p) {
    factors.push_back({parts[p].a, true, 1, parts[p].u->data});
  }
  project(ctx, input, factors);
  std::vector<ProductTerm> terms;
  for (int32_t i = 0; i < count; ++i) {
    const View& y = *linears[i].y;
    terms.clear();
    for (int32_t p = 0; p < part_count; ++p) {
      if (parts[p].linear != i) continue;
      terms.push_back(
          low_rank_term(parts[p].u->data, parts[p].b->shape[1], *parts[p].b, true, parts[p].scale));
    }
    // Last, so that parts which cancel (a PiSSA pair before its first step) leave the base alone to
    // the last bit.
    terms.push_back(base_term(*x, *linears[i].weight, true));
    sum_products(ctx, {y.shape[0], y.shape[1], terms, linears[i].bias}, dense(y));
  }
  return 0;
}

int32_t linear_backward_kernel(Context* ctx, const View* x, const View* x_adapter, const View* dx,
                               const View* dx_adapter, const LinearOperands* linears, int32_t count,
                               const LowRankOperands* parts, int32_t part_count) {
  const std::span<const LowRankOperands> all(parts, static_cast<size_t>(part_count));
  const std::span<const LinearOperands> group(linears, static_cast<size_t>(count));
  if (linear_fits_tiles(*linears[0].weight, group)) {
    linear_backward_tiles(ctx, {x, x_adapter, dx, dx_adapter}, group, all);
    return 0;
  }
  const View* const low_rank_dx = x_adapter ? dx_adapter : dx;
  const std::vector<void*> du = input_gradients(ctx, linears, all, low_rank_dx != nullptr);
  for (size_t p = 0; p < all.size(); ++p) {
    const LowRankOperands& part = all[p];
    const View* dy = linears[part.linear].y;
    const int64_t rank = part.b->shape[1];
    if (part.da && !dy) fill_zero(*part.da);
    if (part.db && !dy) fill_zero(*part.db);
    if (!dy) continue;
    if (part.da) contract(ctx, x_adapter ? *x_adapter : *x, du[p], rank, 1, *part.da, false);
    if (part.db) contract(ctx, *dy, part.u->data, rank, part.scale, *part.db, true);
  }
  std::vector<ProductTerm> base, low_rank;
  for (int32_t i = 0; i < count; ++i) {
    if (linears[i].y) base.push_back(base_term(*linears[i].y, *linears[i].weight, false));
  }
  for (size_t p = 0; p < all.size(); ++p) {
    if (!du[p]) continue;
    (x_adapter ? low_rank : base)
        .push_back(low_rank_term(du[p], all[p].b->shape[1], *all[p].a, false, 1));
  }
  if (dx) write_sum(ctx, *dx, base);
  if (x_adapter && dx_adapter) write_sum(ctx, *dx_adapter, low_rank);
  return 0;
}

int32_t linear_weight_backward_kernel(Context* ctx, const View* dy, const View* x,
                                      const View* dweight, const View* dbias) {
  const int64_t rows = dy->shape[0], out = dy->shape[1];
  if (dweight) {
    const int64_t in = x->shape[1];
    gemm(ctx, {out, in, rows}, {dy->data, dy->dtype, out, true}, {x->data, x->dtype, in},
         dense(*dweight));
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
