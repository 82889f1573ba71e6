// thin.h by way of gemm().
#include "kernels/cpu/linear/thin.h"

#include <algorithm>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/row_product.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"

namespace balora {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 18;  // of widened x: 1 MiB, about one core's L2

bool is_narrow(int32_t dtype) {
  return dtype == BALORA_BF16 || dtype == BALORA_F16;
}

// Rows that are widened at a time.
int64_t widened_rows(const View& x) {
  const int64_t m = x.shape[0], k = x.shape[1];
  return std::min(std::max<int64_t>(kBlockElements / std::max<int64_t>(k, 1), 64), m);
}

GemmOutput rows_of(const GemmOutput& out, int64_t first) {
  return {offset_by(out.data, first * out.ld, out.dtype), out.dtype, out.ld};
}

// The products of rows [first, first + rows) of x, which stand at `wide`.
void multiply_rows(Context* ctx, const GemmInput& wide, int64_t first, const GemmShape& x,
                   std::span<const Projection> projections, bool by_rows) {
  for (const Projection& each : projections) {
    const GemmShape shape = {x.m, each.columns, x.k};
    const GemmOutput to = rows_of(each.out, first);
    if (by_rows) {
      row_product(ctx, shape, wide, each.w, to, 0);
    } else {
      gemm(ctx, shape, wide, each.w, to);
    }
  }
}

void contract_rows(Context* ctx, GemmInput wide, int64_t first, const GemmShape& x,
                   const Contraction& c) {
  const View& out = *c.out;
  const int32_t type = out.dtype;
  GemmInput left = {offset_by(c.p.data, first * c.p.ld, type), type, c.p.ld, true};
  const GemmScale sum = {c.scale, first == 0 ? 0.0 : 1.0};
  if (c.transposed) {
    left.transposed = false, wide.transposed = true;
    gemm(ctx, {x.k, c.p.rank, x.m}, wide, left, {out.data, type, c.p.rank}, sum);
  } else {
    gemm(ctx, {c.p.rank, x.k, x.m}, left, wide, {out.data, type, x.k}, sum);
  }
}

}  // namespace

void fill_zero(const View& view) {
  std::fill_n(static_cast<char*>(view.data), view_numel(view) * element_size(view.dtype), char{0});
}

View rows_of(const View& x, int64_t first, int64_t count) {
  View rows = x;
  rows.data = offset_by(x.data, first * x.shape[1], x.dtype), rows.shape[0] = count;
  return rows;
}

void thin_products(Context* ctx, const View& x, std::span<const Projection> projections,
                   std::span<const Contraction> contractions, bool by_rows) {
  if (projections.empty() && contractions.empty()) return;
  const int64_t m = x.shape[0], k = x.shape[1];
  if (m == 0) {
    for (const Contraction& each : contractions) fill_zero(*each.out);
    return;
  }
  const bool narrow = is_narrow(x.dtype);
  const int64_t block = narrow ? widened_rows(x) : m;
  const Scratch<float> scratch(ctx, narrow ? block * k : 0);
  float* const wide = scratch.data();
  for (int64_t first = 0; first < m; first += block) {
    const int64_t rows = std::min(block, m - first);
    GemmInput some = {x.data, x.dtype, k};
    if (narrow) {
      convert_rows(ctx, {offset_by(x.data, first * k, x.dtype), x.dtype, k}, {wide, BALORA_F32, k},
                   rows, k);
      some = {wide, BALORA_F32, k};
    }
    const GemmShape shape = {rows, 0, k};
    multiply_rows(ctx, some, first, shape, projections, by_rows);
    for (const Contraction& each : contractions) contract_rows(ctx, some, first, shape, each);
  }
}

void widen_and_project(Context* ctx, const View& x, float* wide,
                       std::span<const Projection> projections) {
  const int64_t m = x.shape[0], k = x.shape[1], block = widened_rows(x);
  for (int64_t first = 0; first < m; first += block) {
    const int64_t rows = std::min(block, m - first);
    float* const to = wide + first * k;
    convert_rows(ctx, {offset_by(x.data, first * k, x.dtype), x.dtype, k}, {to, BALORA_F32, k},
                 rows, k);
    multiply_rows(ctx, {to, BALORA_F32, k}, first, {rows, 0, k}, projections, false);
  }
}

}  // namespace balora
