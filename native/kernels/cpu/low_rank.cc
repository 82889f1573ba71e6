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

// value = hi + lo to 16 bits.
BALORA_INLINE void split_row(const float* value, bf16* hi, bf16* lo, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    hi[i] = to_bf16(value[i]);
    lo[i] = to_bf16(value[i] - to_float(hi[i]));
  }
}
BALORA_SIMD void split(const float* value, bf16* hi, bf16* lo, int64_t count) {
  split_row(value, hi, lo, count);
}

// out (m,R) = scale * (t[:, :R] + t[:, R:2R]) of rows `ld` apart.
BALORA_INLINE void join_row(const float* t, float* out, int64_t rank, float scale) {
#pragma omp simd
  for (int64_t r = 0; r < rank; ++r) out[r] = scale * (t[r] + t[rank + r]);
}
BALORA_SIMD void join(const float* t, int64_t ld, float* out, int64_t rank, float scale,
                      int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) join_row(t + i * ld, out + i * rank, rank, scale);
}

// One bf16 product with [hi | lo] of every factor side by side.
void project_split(Context* ctx, const View& x, std::span<const Factor> factors) {
  const int64_t m = x.shape[0], k = x.shape[1];
  const bool transposed = factors[0].transposed;
  int64_t columns = 0;
  for (const Factor& factor : factors) columns += 2 * factor.rank();
  CpuState& state = CpuState::of(ctx);
  auto* halves = static_cast<bf16*>(state.scratch(CpuState::kFirst, columns * k * sizeof(bf16)));
  auto* sums = static_cast<float*>(state.scratch(CpuState::kSecond, m * columns * sizeof(float)));
  int64_t column = 0;
  for (const Factor& factor : factors) {
    const int64_t rank = factor.rank();
    const float* w = data_of<float>(factor.w);
    if (transposed) {
      split(w, halves + column * k, halves + (column + rank) * k, rank * k);
    } else {
      for (int64_t i = 0; i < k; ++i) {
        bf16* to = halves + i * columns + column;
        split(w + i * rank, to, to + rank, rank);
      }
    }
    column += 2 * rank;
  }
  gemm(ctx, {m, columns, k}, {x.data, x.dtype, k},
       {halves, BALORA_BF16, transposed ? k : columns, transposed}, {sums, BALORA_F32, columns});
  column = 0;
  for (const Factor& factor : factors) {
    const int64_t rank = factor.rank();
    parallel_for(ctx, m, 256, [&](int64_t begin, int64_t end) {
      join(sums + column, columns, static_cast<float*>(factor.out), rank,
           static_cast<float>(factor.scale), begin, end);
    });
    column += 2 * rank;
  }
}

}  // namespace

void project(Context* ctx, const View& x, std::span<const Factor> factors) {
  if (factors.empty()) return;
  if (x.dtype == BALORA_BF16 && cpu_has_amx()) return project_split(ctx, x, factors);
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
