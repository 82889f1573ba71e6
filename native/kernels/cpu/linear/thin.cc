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

// The products of rows [first, first + x.m) of x, which stand at `wide`.
void multiply_rows(Context* ctx, const GemmInput& wide, int64_t first, const GemmShape& x,
                   const Projection& each, bool by_rows) {
  const GemmShape shape = {x.m, each.columns, x.k};
  GemmOutput to = each.out;
  to.data = offset_by(to.data, first * to.ld, to.dtype);
  if (by_rows) return row_product(ctx, shape, wide, each.w, to, 0);
  gemm(ctx, shape, wide, each.w, to);
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
                   std::span<const Contraction> contractions, bool by_rows, float* wide) {
  if (projections.empty() && contractions.empty() && !wide) return;
  const int64_t m = x.shape[0], k = x.shape[1];
  if (m == 0) {
    for (const Contraction& each : contractions) fill_zero(*each.out);
    return;
  }
  const bool narrow = x.dtype == BALORA_BF16 || x.dtype == BALORA_F16;
  const int64_t fitting = std::max<int64_t>(kBlockElements / std::max<int64_t>(k, 1), 64);
  const int64_t block = narrow ? std::min(fitting, m) : m;
  const Scratch<float> scratch(ctx, narrow && !wide ? block * k : 0);
  for (int64_t first = 0; first < m; first += block) {
    const GemmShape shape = {std::min(block, m - first), 0, k};
    GemmInput some = {offset_by(x.data, first * k, x.dtype), x.dtype, k};
    if (narrow) {
      float* const to = wide ? wide + first * k : scratch.data();
      convert_rows(ctx, {some.data, x.dtype, k}, {to, BALORA_F32, k}, shape.m, k);
      some = {to, BALORA_F32, k};
    }
    for (const Projection& each : projections) {
      multiply_rows(ctx, some, first, shape, each, by_rows);
    }
    for (const Contraction& each : contractions) contract_rows(ctx, some, first, shape, each);
  }
}

}  // namespace balora
