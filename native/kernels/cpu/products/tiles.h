// Products of tiles (bf16 x bf16 -> f32) on AMX or AVX512-BF16, for what a library's GEMM cannot do
// in one pass: the low-rank parts of a linear and the linears that share an input meet in one
// accumulator, which is rounded once. B operands are packed in tiles, in one layout for both kinds
// of instruction; A operands are read where they lie. The k order of every sum is fixed, so the
// number of threads does not change a bit.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/products/int8.h"
#include "kernels/kernel_table.h"
#include "platform/cpu.h"
#include "tensor/dtype.h"

namespace balora {

// Whether this process may run the functions below.
inline bool tiles_ready() {
  return platform::cpu().uses(platform::kBf16);
}
// Whether they run on AMX.
inline bool tiles_use_amx() {
  return platform::cpu().uses(platform::kAmx);
}

constexpr int64_t kTileK = 32;                      // bf16 of k in one step
constexpr int64_t kTileN = 32;                      // columns of a panel: two tiles
constexpr int64_t kStepElements = kTileK * kTileN;  // of one step of one panel
constexpr int64_t kPanelRows = 32;                  // rows of a panel of A or C: two tiles
constexpr int64_t kRankTile = 16;  // ranks of a panel of a factor, each with two columns

constexpr int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// Elements of a packed (k,n) operand.
constexpr int64_t tiles_size(int64_t k, int64_t n) {
  return round_up(k, kTileK) * round_up(n, kTileN);
}

// A matrix where it lies: element (i,j) at data[i * k_stride + j * n_stride]; or in a weight in
// blocks, at the element first + i * k_stride + j * n_stride of that.
struct TileMatrix {
  const bf16* data = nullptr;
  int64_t k_stride = 0, n_stride = 0;
  const View* encoded = nullptr;  // one stride is 1
  int64_t first = 0;

  // The elements of a matrix (rows,columns) from one of them on, in its order or transposed.
  static TileMatrix of(const View& matrix, int64_t first, bool transposed) {
    const int64_t ld = matrix.shape[1];
    const int64_t k_stride = transposed ? 1 : ld, n_stride = transposed ? ld : 1;
    if (matrix.encoding) return {nullptr, k_stride, n_stride, &matrix, first};
    return {static_cast<const bf16*>(matrix.data) + first, k_stride, n_stride};
  }

  TileMatrix at(int64_t i, int64_t j) const {
    const int64_t offset = i * k_stride + j * n_stride;
    if (encoded) return {nullptr, k_stride, n_stride, encoded, first + offset};
    return {data + offset, k_stride, n_stride};
  }
};

// Packs B (k,n).
void pack_tiles(Context* ctx, const TileMatrix& b, int64_t k, int64_t n, bf16* tiles);
// Its panels [begin, end) alone, by the calling thread.
void pack_tile_panels(const TileMatrix& b, int64_t k, int64_t n, int64_t begin, int64_t end,
                      bf16* tiles);

// The upper or lower half of scale * value: a pair of bf16 holds 16 bits of an f32.
enum class Half { kHigh, kLow };

// One row of k, or one column, of a B operand made of f32 factors: element j is
// scale * (data - minus)[j * stride]; null data is zero, null minus subtracts nothing.
struct FactorLine {
  const float* data = nullptr;
  int64_t stride = 0;
  float scale = 1;
  Half half = Half::kHigh;
  const float* minus = nullptr;
};
void pack_factor_rows(Context* ctx, std::span<const FactorLine> rows, int64_t n, bf16* tiles);
// A multiple of kTileN columns.
void pack_factor_columns(Context* ctx, std::span<const FactorLine> columns, int64_t k, bf16* tiles);

// A (m,k) bf16, rows lda apart, times a B that is packed, or that the walk packs.
struct TileTerm {
  const bf16* a;
  int64_t lda;
  int64_t k;
  const bf16* tiles = nullptr;  // null: `matrix` is to be packed
  bool padded_rows = false;     // A has zeroed rows up to a multiple of kPanelRows
  int64_t used = 0;             // of k, the rest being zeros; 0: all
  TileMatrix matrix = {};       // B (k,n)
};

// Where a sum goes: C (m,n) = sum (+ bias), in f32 or bf16. Where it accumulates, the sum begins
// with what is there, in f32, and has no terms in int8.
struct TileOutput {
  void* c;
  int32_t dtype;
  int64_t ldc;
  bool accumulate = false;
  const float* bias = nullptr;  // (n)
  int64_t panel_step = kTileN;  // elements from one panel of columns to the next

  // Elements up to the first column of a panel, in a row.
  int64_t offset(int64_t row, int64_t column) const {
    return row * ldc + column / kTileN * panel_step;
  }
};

// A term in int8, whose B the walk packs.
struct TileInt8Term {
  Int8Rows a;
  Int8Matrix b;
};

// The terms in int8 come first, in f32 from their exact sums, and are rotated together where their
// B says so; the others are added to them.
struct TileSum {
  int64_t n;
  std::vector<TileTerm> terms;
  TileOutput out;
  std::vector<TileInt8Term> int8 = {};
};

// The two columns that a rank has, and so the A columns that the sums that follow get of u.
enum class FactorForm {
  // Upper and lower halves of w; u's upper halves, then its lower ones, then the upper again.
  kHalves,
  // The same of w; u rounded.
  kOnce,
  // Where w began, and w less that; u, then what the change alone makes of it, each rounded.
  kChange,
};

// u (m,rank) = scale * x w for one factor w, whose packed columns are filled up to kRankTile ranks,
// each kRankTile of them as a panel of their first columns, then their second ones. u is kept in
// f32 and as A columns of the sums that follow: of row i at columns + i * ld. Both may be null.
// `columns` has rows up to a multiple of kPanelRows; those past m are written as zeros.
struct TileFactor {
  int64_t rank;
  float scale;
  FactorForm form;
  const bf16* tiles;
  float* u;
  bf16* columns;
  int64_t ld;
};

// x, whose term has no B, times factors.
struct TileProjection {
  TileTerm x;
  std::vector<TileFactor> factors;
};

// Rows of one m: the projections of a panel of rows first, then the sums of that panel, so that
// rows of x are fetched once and what projections write is read from cache.
void run_tiles(Context* ctx, int64_t m, std::span<const TileProjection> projections,
               std::span<const TileSum> sums);

// The sums by the calling thread alone, for threads that pack their own B: what one core packs and
// another reads travels between their caches twice. `padding` has tile_padding(m, sums) elements.
void run_tiles_alone(int64_t m, std::span<const TileSum> sums, bf16* padding);
int64_t tile_padding(int64_t m, std::span<const TileSum> sums);

// Row r of the left operand of contract_tiles: element i at data[i * stride]. Element j of its row
// of sums goes, scaled, to out[j * out_stride].
struct RankLine {
  const float* data;
  int64_t stride;
  float scale;
  float* out;
  int64_t out_stride;
};

// The part of a value of p that is multiplied: one bf16, or both halves of a pair.
enum class Rounding { kOnce, kHalves };

// p^T x (R,k) in f32, with p's R columns in f32 and x (m,k) bf16 contiguous.
void contract_tiles(Context* ctx, const bf16* x, int64_t m, int64_t k, std::span<const RankLine> p,
                    Rounding rounding);

}  // namespace balora
