// low_rank.h by way of gemm().
#include "kernels/cpu/low_rank.h"

#include <algorithm>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"

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
    const void* from =
        static_cast<const char*>(x.data) + first * k * dtype_size(static_cast<DType>(x.dtype));
    convert_rows(ctx, from, x.dtype, k, wide, BALORA_F32, k, rows, k);
    body(first, rows, GemmInput{wide, BALORA_F32, k});
  }
}

int64_t element_bytes(int32_t accumulator) {
  return accumulator == BALORA_F64 ? 8 : 4;
}

}  // namespace

void project(Context* ctx, const View& x, std::span<const Factor> factors) {
  if (factors.empty()) return;
  const int32_t type = factors[0].w->dtype;
  for_wide_rows(ctx, x, [&](int64_t first, int64_t rows, const GemmInput& wide) {
    for (const Factor& factor : factors) {
      const int64_t rank = factor.rank();
      void* out = static_cast<char*>(factor.out) + first * rank * element_bytes(type);
      gemm(ctx, {rows, rank, x.shape[1]}, wide,
           {factor.w->data, type, factor.transposed ? x.shape[1] : rank, factor.transposed},
           {out, type, rank}, {factor.scale, 0});
    }
  });
}

void contract(Context* ctx, const View& x, const void* p, int64_t rank, double scale,
              const View& out, bool transposed) {
  const int64_t k = x.shape[1];
  const int32_t type = out.dtype;
  if (x.shape[0] == 0) {
    std::fill_n(static_cast<char*>(out.data), view_numel(out) * element_bytes(type), char{0});
    return;
  }
  for_wide_rows(ctx, x, [&](int64_t first, int64_t rows, GemmInput wide) {
    const void* block = static_cast<const char*>(p) + first * rank * element_bytes(type);
    GemmInput left = {block, type, rank, true};
    const GemmScale sum = {scale, first == 0 ? 0.0 : 1.0};
    if (transposed) {
      left.transposed = false, wide.transposed = true;
      gemm(ctx, {k, rank, rows}, wide, left, {out.data, type, rank}, sum);
    } else {
      gemm(ctx, {rank, k, rows}, left, wide, {out.data, type, k}, sum);
    }
  });
}

}  // namespace balora
