// Blocked f64 product after Goto and van de Geijn: panels of B (kDepth x 16) and strips of A
// (kDepth x 8) are widened and packed, and multiplied by tile_gemm. Where B has few columns a strip
// of f64 is read where it lies: packing it would cost as much as the product.
#include "kernels/cpu/products/product_f64.h"

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/wide.h"
#include "platform/platform.h"

namespace balora {
namespace {

constexpr int64_t kLanes = 8;         // of a strip of A, and half of a panel of B
constexpr int64_t kPanel = 16;        // columns of B
constexpr int64_t kDepth = 256;       // k-extent of a block: a packed panel of B stays in L1
constexpr int64_t kBlockCols = 1024;  // columns packed at once: 2 MiB of B
constexpr int64_t kBlockRows = 96;
constexpr int64_t kFewPanels = 2;  // of B: up to here strips of A are not packed

constexpr int64_t in_units(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit;
}

// Packing of `depth` lines of kLanes elements that follow each other; packed lines are ld apart.
template <typename T>
BALORA_INLINE void pack_lines(const T* data, int64_t depth_stride, int64_t depth, double* packed,
                              int64_t ld) {
  for (int64_t p = 0; p < depth; ++p) {
    for (int64_t j = 0; j < kLanes; ++j) {
      packed[p * ld + j] = static_cast<double>(load(data[p * depth_stride + j]));
    }
  }
}

// The same of lanes that each lie in a line of depth: by squares of 8 x 8.
BALORA_INLINE void pack_across(const double* data, int64_t lane_stride, int64_t depth,
                               double* packed, int64_t ld) {
  int64_t p = 0;
  for (; p + 8 <= depth; p += 8) {
    Wide<double> lines[8];
#pragma GCC unroll 8
    for (int64_t j = 0; j < 8; ++j) load_wide(data + j * lane_stride + p, lines[j]);
    transpose_rows(lines);
#pragma GCC unroll 8
    for (int64_t j = 0; j < 8; ++j) store_wide(lines[j], packed + (p + j) * ld);
  }
  for (; p < depth; ++p) {
    for (int64_t j = 0; j < kLanes; ++j) packed[p * ld + j] = data[j * lane_stride + p];
  }
}

// Steps [begin, begin + count) of one extent of an operand.
struct Range {
  int64_t begin, count;
};

// Elements (depth, lanes) of m (k,n) as lines of `width`, a multiple of kLanes, with zeros where
// the lanes end.
void pack(const MatrixRef& m, const Range& depth, const Range& lanes, int64_t width,
          double* packed) {
  dispatch_float(m.dtype, [&]<typename T>() {
    for (int64_t j = 0; j < width; j += kLanes) {
      const T* data = static_cast<const T*>(m.data) + depth.begin * m.row_stride +
                      (lanes.begin + j) * m.col_stride;
      const int64_t there = std::clamp<int64_t>(lanes.count - j, 0, kLanes);
      if (m.col_stride == 1 && there == kLanes) {
        at_level<&pack_lines<T>>(data, m.row_stride, depth.count, packed + j, width);
      } else if (std::is_same_v<T, double> && m.row_stride == 1 && there == kLanes) {
        at_level<&pack_across>(reinterpret_cast<const double*>(data), m.col_stride, depth.count,
                               packed + j, width);
      } else {
        for (int64_t p = 0; p < depth.count; ++p) {
          for (int64_t i = 0; i < kLanes; ++i) {
            packed[p * width + j + i] =
                i < there ? static_cast<double>(load(data[p * m.row_stride + i * m.col_stride]))
                          : 0.0;
          }
        }
      }
    }
  });
}

// The part of a product that one packing of B serves.
struct Block {
  Range depth, cols;

  int64_t panels() const { return in_units(cols.count, kPanel); }
};

// C (m,n) = alpha A (m,k) B (k,n) + beta C. Of a symmetric product only the tiles that reach below
// the diagonal are computed.
struct Product {
  int64_t m, n, k;
  MatrixRef a, b;
  double* c;
  int64_t ldc;
  double alpha, beta;
  bool symmetric = false;
};

platform::AlignedMemory memory_for(int64_t count) {
  return platform::allocate_aligned(static_cast<uint64_t>(count) * sizeof(double));
}

// c (rows,cols) += alpha * tile (kLanes,kPanel).
BALORA_INLINE void add_tile(const double* tile, double alpha, double* c, int64_t ldc, int64_t rows,
                            int64_t cols) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) c[i * ldc + j] += alpha * tile[i * kPanel + j];
  }
}

// Rows [begin, end) of C[:, block] += A[:, block depth] * packed B, in panels of B. `strips` has
// room for the rows of A.
void multiply_rows(const Product& p, const double* packed_b, const Block& block, const Range& rows,
                   const Range& panels, double* strips) {
  const bool few = block.panels() <= kFewPanels && p.a.dtype == BALORA_F64 &&
                   (p.a.col_stride == 1 || p.a.row_stride == 1);
  const int64_t depth = block.depth.count, end = rows.begin + rows.count;
  const auto strip_of = [&](int64_t i) { return strips + (i - rows.begin) * depth; };
  const auto in_place = [&](int64_t i) { return few && i + kLanes <= end; };
  for (int64_t i = rows.begin; i < end; i += kLanes) {
    if (in_place(i)) continue;
    pack(p.a.transposed(), block.depth, {i, std::min(kLanes, end - i)}, kLanes, strip_of(i));
  }
  alignas(64) double tile[kLanes * kPanel];
  for (int64_t panel = panels.begin; panel < panels.begin + panels.count; ++panel) {
    const int64_t first = panel * kPanel, j = block.cols.begin + first;
    const int64_t cols = std::min(kPanel, block.cols.count - first);
    for (int64_t i = rows.begin; i < end; i += kLanes) {
      const int64_t count = std::min(kLanes, end - i);
      if (p.symmetric && j >= i + count) continue;
      TileOperands<double> o{.shape = {kLanes, in_units(cols, kLanes) * kLanes, depth},
                             .a = strip_of(i),
                             .lda = kLanes,
                             .b = packed_b + first * depth,
                             .ldb = kPanel,
                             .c = tile,
                             .ldc = kPanel,
                             .accumulate = false,
                             .left = TileLeft::kColumns};
      if (in_place(i)) {
        const bool by_rows = p.a.col_stride == 1;
        o.a = static_cast<const double*>(p.a.data) + i * p.a.row_stride +
              block.depth.begin * p.a.col_stride;
        o.lda = by_rows ? p.a.row_stride : p.a.col_stride;
        o.left = by_rows ? TileLeft::kRows : TileLeft::kColumns;
      }
      tile_gemm(o);
      at_level<&add_tile>(tile, p.alpha, p.c + i * p.ldc + j, p.ldc, count, cols);
    }
  }
}

constexpr double kSmallProduct = 1 << 17;  // multiplications that one thread takes

void multiply(const Context* given, const Product& p) {
  Context own = *given;
  const double work =
      static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  if (work <= kSmallProduct) own.num_threads = 1;
  const Context* ctx = &own;
  if (p.beta != 1) {
    parallel_for(ctx, p.m, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(p.n, 1)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     double* const row = p.c + i * p.ldc;
                     if (p.beta == 0) {
                       std::fill_n(row, p.n, 0.0);
                     } else {
                       for (int64_t j = 0; j < p.n; ++j) row[j] *= p.beta;
                     }
                   }
                 });
  }
  const platform::AlignedMemory panels_of_b =
      memory_for(std::min(kDepth, p.k) * (std::min(kBlockCols, p.n) + kPanel));
  auto* packed_b = static_cast<double*>(panels_of_b.get());
  const int64_t row_blocks = in_units(p.m, kBlockRows);
  for (int64_t col = 0; col < p.n; col += kBlockCols) {
    for (int64_t depth = 0; depth < p.k; depth += kDepth) {
      const Block block{{depth, std::min(kDepth, p.k - depth)},
                        {col, std::min(kBlockCols, p.n - col)}};
      const int64_t panels = block.panels();
      parallel_for(ctx, panels, 8, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          const int64_t first = panel * kPanel;
          pack(p.b, block.depth, {col + first, std::min(kPanel, block.cols.count - first)}, kPanel,
               packed_b + first * block.depth.count);
        }
      });
      // Few rows and many columns: share the columns out instead of the rows.
      const int64_t splits = row_blocks >= 4 ? 1 : std::clamp<int64_t>(panels / 2, 1, 4);
      share_out(ctx, row_blocks * splits, 1, [&](int64_t begin, int64_t end) {
        const platform::AlignedMemory strips = memory_for(block.depth.count * kBlockRows);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task / splits * kBlockRows, part = task % splits;
          const int64_t first = panels * part / splits;
          multiply_rows(p, packed_b, block, {row, std::min(kBlockRows, p.m - row)},
                        {first, panels * (part + 1) / splits - first},
                        static_cast<double*>(strips.get()));
        }
      });
    }
  }
}

}  // namespace

void product_f64(const Context* ctx, int64_t m, int64_t n, int64_t k, const MatrixRef& a,
                 const MatrixRef& b, double* c, int64_t ldc, double alpha, double beta) {
  multiply(ctx, {m, n, k, a, b, c, ldc, alpha, beta});
}

void symmetric_product_f64(const Context* ctx, int64_t m, int64_t k, const MatrixRef& a,
                           const MatrixRef& b, double* c, bool accumulate) {
  multiply(ctx, {m, m, k, a, b, c, m, 1, accumulate ? 1.0 : 0.0, true});
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < i; ++j) c[j * m + i] = c[i * m + j];
  }
}

}  // namespace balora
