// Products on AMX tiles (bf16 x bf16 -> f32), for what a library's GEMM cannot do in one pass:
// several products into one accumulator (a frozen base and its low-rank parts, the linears that
// share an input) with one rounding at the end. B operands are packed in tiles once; A operands are
// read where they lie. The k order of every sum is fixed, so the number of threads does not change
// a bit.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernel_table.h"
#include "tensor/dtype.h"

namespace balora {

// True where this process may use AMX (the CPU has it, oneDNN's ISA limit allows it, the kernel
// granted the state).
bool amx_ready();

constexpr int64_t kTileK = 32;  // bf16 of k in one tile step
constexpr int64_t kTileN = 32;  // columns of a panel: two tiles

constexpr int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// Elements of a packed (k,n) operand.
constexpr int64_t tiles_size(int64_t k, int64_t n) {
  return round_up(k, kTileK) * round_up(n, kTileN);
}

// Packs B (k,n), element (i,j) at b[i * k_stride + j * n_stride].
void pack_tiles(Context* ctx, const bf16* b, int64_t k_stride, int64_t n_stride, int64_t k,
                int64_t n, bf16* tiles);

// The upper or lower half of scale * value: a bf16 pair holds 16 bits of an f32.
enum class Half { kHigh, kLow };

// One row of k, or one column, of a B operand made of f32 factors: element j at data[j * stride];
// null data is zero.
struct FactorLine {
  const float* data = nullptr;
  int64_t stride = 0;
  float scale = 1;
  Half half = Half::kHigh;
};
void pack_factor_rows(Context* ctx, std::span<const FactorLine> rows, int64_t n, bf16* tiles);
void pack_factor_columns(Context* ctx, std::span<const FactorLine> columns, int64_t k, bf16* tiles);

// A (m,k) bf16, rows lda apart, times a packed B.
struct TileTerm {
  const bf16* a;
  int64_t lda;
  int64_t k;
  const bf16* tiles;
};

// C (m,n) = sum of terms (+ C) (+ addend) (+ bias), in f32 or bf16.
struct TileOutput {
  void* c;
  int32_t dtype;
  int64_t ldc;
  bool accumulate = false;
  const float* addend = nullptr;  // (m,n), rows addend_ld apart
  int64_t addend_ld = 0;
  const float* bias = nullptr;  // (n)
};
void multiply_tiles(Context* ctx, int64_t m, int64_t n, std::span<const TileTerm> terms,
                    const TileOutput& out);

// sums (R,k) = p^T x, f32 dense, with p (m,R) in f32 taken as bf16 pairs and x (m,k) bf16
// contiguous.
void contract_tiles(Context* ctx, const bf16* x, int64_t m, int64_t k, const float* p, int64_t rank,
                    float* sums);

}  // namespace balora
