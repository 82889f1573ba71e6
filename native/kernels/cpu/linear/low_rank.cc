// low_rank.h by way of gemm().
#include "kernels/cpu/linear/low_rank.h"

#include <algorithm>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/products/row_product.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 18;  // of widened x: 1 MiB, about one core's L2

bool is_narrow(int32_t dtype) {
  return dtype == BALORA_BF16 || dtype == BALORA_F16;
}

// Calls body(first_row, rows, x) with x (rows,k) as a product operand: x itself, or blocks of it
// widened to f32.
template <typename Body>
void for_wide_rows(Context* ctx, const View& x, const Body& body) {
  const int64_t m = x.shape[0], k = x.shape[1];
  if (!is_narrow(x.dtype)) return body(0, m, GemmInput{x.data, x.dtype, k});
  const int64_t fitting = std::max<int64_t>(kBlockElements / std::max<int64_t>(k, 1), 64);
  const int64_t block = std::min(fitting, m);
  void* wide = CpuState::of(ctx).scratch(CpuState::kFirst, block * k * sizeof(float));
  for (int64_t first = 0; first < m; first += block) {
    const int64_t rows = std::min(block, m - first);
    convert_rows(ctx, {offset_by(x.data, first * k, x.dtype), x.dtype, k}, {wide, BALORA_F32, k},
                 rows, k);
    body(first, rows, GemmInput{wide, BALORA_F32, k});
  }
}

}  // namespace

void fill_zero(const View& view) {
  std::fill_n(static_cast<char*>(view.data), view_numel(view) * element_size(view.dtype), char{0});
}

void project(Context* ctx, const View& x, const GemmInput& w, int64_t columns,
             const GemmOutput& out, bool by_rows) {
  for_wide_rows(ctx, x, [&](int64_t first, int64_t rows, const GemmInput& wide) {
    void* to = offset_by(out.data, first * out.ld, out.dtype);
    const GemmShape shape = {rows, columns, x.shape[1]};
    if (by_rows) return row_product(ctx, shape, wide, w, {to, out.dtype, out.ld}, 0);
    gemm(ctx, shape, wide, w, {to, out.dtype, out.ld});
  });
}

void contract(Context* ctx, const View& x, const LeftOperand& p, double scale, const View& out,
              bool transposed) {
  const int64_t k = x.shape[1];
  const int32_t type = out.dtype;
  if (x.shape[0] == 0) return fill_zero(out);
  for_wide_rows(ctx, x, [&](int64_t first, int64_t rows, GemmInput wide) {
    GemmInput left = {offset_by(p.data, first * p.ld, type), type, p.ld, true};
    const GemmScale sum = {scale, first == 0 ? 0.0 : 1.0};
    if (transposed) {
      left.transposed = false, wide.transposed = true;
      gemm(ctx, {k, p.rank, rows}, wide, left, {out.data, type, p.rank}, sum);
    } else {
      gemm(ctx, {p.rank, k, rows}, left, wide, {out.data, type, k}, sum);
    }
  });
}

}  // namespace balora
