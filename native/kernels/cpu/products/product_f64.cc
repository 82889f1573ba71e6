// Blocked f64 product after Goto and van de Geijn: panels of B (kDepth x 8) and strips of A (kDepth
// x 6) are widened and packed, a register tile of 6 x 8 accumulates in 12 registers of AVX2 or 6 of
// AVX-512. Where B has few columns a strip of f64 is read where it lies: packing it would cost as
// much as the product.
#include "kernels/cpu/products/product_f64.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "platform/cpu.h"

namespace balora {
namespace {

constexpr int64_t kTileRows = 6;
constexpr int64_t kTileCols = 8;
constexpr int64_t kDepth = 256;       // k-extent of a block: a packed strip of A stays in L1
constexpr int64_t kBlockCols = 1024;  // columns packed at once: 2 MiB of B
constexpr int64_t kBlockRows = 16 * kTileRows;
constexpr int64_t kFewPanels = 4;   // of B: up to here strips of A are not packed
constexpr int64_t kMostPanels = 4;  // that a wide tile takes

typedef double Lanes __attribute__((vector_size(64)));

// Six rows of A: element (p, i) at data[p * depth_stride + i * row_stride].
struct Strip {
  const double* data;
  int64_t depth_stride, row_stride;
};

// sums (6, kVectors of V) += a (depth,6)^T b: vector j of line p of b is at p * 8 + j * apart.
template <typename V, int kVectors>
BALORA_INLINE void add_products(const Strip& a, const double* b, int64_t apart, int64_t depth,
                                V (&sums)[kTileRows][kVectors]) {
  for (int64_t p = 0; p < depth; ++p) {
    const double* row = a.data + p * a.depth_stride;
    V columns[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      columns[j] = *reinterpret_cast<const V*>(b + p * kTileCols + j * apart);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kTileRows; ++i) {
      const double value = row[i * a.row_stride];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += columns[j] * value;
    }
  }
}

// c (rows,cols) += a (depth,6)^T b (depth,8), with sums in vectors V.
template <typename V>
BALORA_INLINE void add_tile(const Strip& a, const double* b, int64_t depth, double* c, int64_t ldc,
                            int64_t rows, int64_t cols) {
  constexpr int kWidth = sizeof(V) / sizeof(double);
  V sums[kTileRows][kTileCols / kWidth] = {};
  add_products(a, b, kWidth, depth, sums);
  double block[kTileRows][kTileCols];
#pragma GCC unroll 6
  for (int i = 0; i < kTileRows; ++i) std::memcpy(block[i], sums[i], sizeof block[i]);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) c[i * ldc + j] += block[i][j];
  }
}

BALORA_INLINE void multiply_tile_loop(const Strip& a, const double* b, int64_t depth, double* c,
                                      int64_t ldc, int64_t rows, int64_t cols) {
  add_tile<Lanes>(a, b, depth, c, ldc, rows, cols);
}
void multiply_tile(const Strip& a, const double* b, int64_t depth, double* c, int64_t ldc,
                   int64_t rows, int64_t cols) {
  at_level<&multiply_tile_loop>(a, b, depth, c, ldc, rows, cols);
}

using Tile = void (*)(const Strip&, const double*, int64_t, double*, int64_t, int64_t, int64_t);

#if defined(__x86_64__)
// Sums in vectors as wide as AVX2's registers: wider ones GCC keeps in memory there, which takes
// three to four times as long.
__attribute__((target("avx2,fma"))) void multiply_tile_avx2(const Strip& a, const double* b,
                                                            int64_t depth, double* c, int64_t ldc,
                                                            int64_t rows, int64_t cols) {
  typedef double Half __attribute__((vector_size(32), may_alias));
  add_tile<Half>(a, b, depth, c, ldc, rows, cols);
}
#endif

Tile tile_of_this_cpu() {
#if defined(__x86_64__)
  if (platform::cpu().uses(platform::kAvx2) && !platform::cpu().uses(platform::kAvx512))
    return &multiply_tile_avx2;
#endif
  return &multiply_tile;
}

typedef double UnalignedLanes __attribute__((vector_size(64), aligned(8), may_alias));

// The same for 6 x 8 panels elements of C, whose columns of B are in panels that follow each other:
// each element is the sum of the same products in the same order.
template <int kPanels>
BALORA_INLINE void wide_tile(const Strip& a, const double* b, int64_t depth, double* c,
                             int64_t ldc) {
  Lanes sums[kTileRows][kPanels] = {};
  add_products(a, b, depth * kTileCols, depth, sums);
#pragma GCC unroll 6
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanels; ++j) {
      *reinterpret_cast<UnalignedLanes*>(c + i * ldc + j * kTileCols) += sums[i][j];
    }
  }
}

BALORA_INLINE void tile_of_2_loop(const Strip& a, const double* b, int64_t depth, double* c,
                                  int64_t ldc) {
  wide_tile<2>(a, b, depth, c, ldc);
}
void tile_of_2(const Strip& a, const double* b, int64_t depth, double* c, int64_t ldc) {
  at_level<&tile_of_2_loop>(a, b, depth, c, ldc);
}
BALORA_INLINE void tile_of_3_loop(const Strip& a, const double* b, int64_t depth, double* c,
                                  int64_t ldc) {
  wide_tile<3>(a, b, depth, c, ldc);
}
void tile_of_3(const Strip& a, const double* b, int64_t depth, double* c, int64_t ldc) {
  at_level<&tile_of_3_loop>(a, b, depth, c, ldc);
}
BALORA_INLINE void tile_of_4_loop(const Strip& a, const double* b, int64_t depth, double* c,
                                  int64_t ldc) {
  wide_tile<4>(a, b, depth, c, ldc);
}
void tile_of_4(const Strip& a, const double* b, int64_t depth, double* c, int64_t ldc) {
  at_level<&tile_of_4_loop>(a, b, depth, c, ldc);
}

// By the number of panels; null where registers are too few for more than one.
using WideTile = void (*)(const Strip&, const double*, int64_t, double*, int64_t);
constexpr WideTile kWideTiles[kMostPanels + 1] = {nullptr, nullptr, tile_of_2, tile_of_3,
                                                  tile_of_4};

// Up to `width` columns of a block (depth x lanes) become (depth, width), zero where
// the matrix ends.
template <typename T>
void pack(const T* data, int64_t depth_stride, int64_t lane_stride, int64_t depth, int64_t lanes,
          int64_t width, double* packed) {
  for (int64_t p = 0; p < depth; ++p) {
    const T* source = data + p * depth_stride;
    double* out = packed + p * width;
    for (int64_t j = 0; j < lanes; ++j) out[j] = static_cast<double>(load(source[j * lane_stride]));
    for (int64_t j = lanes; j < width; ++j) out[j] = 0;
  }
}

// The same where the lanes follow each other in memory and are as many as the panel has.
template <typename T, int64_t kWidth>
BALORA_INLINE void copy_lines(const T* data, int64_t depth_stride, int64_t depth, double* packed) {
  for (int64_t p = 0; p < depth; ++p) {
    for (int64_t j = 0; j < kWidth; ++j) {
      packed[p * kWidth + j] = static_cast<double>(load(data[p * depth_stride + j]));
    }
  }
}
template <typename T>
BALORA_INLINE void pack_lines(const T* data, int64_t depth_stride, int64_t depth, int64_t width,
                              double* packed) {
  if (width == kTileCols) return copy_lines<T, kTileCols>(data, depth_stride, depth, packed);
  copy_lines<T, kTileRows>(data, depth_stride, depth, packed);
}

// The same of f64 lanes that each lie in a line of depth: by squares of 8 x 8. Writes up to
// kTileCols - width elements behind the end.
BALORA_INLINE void pack_across_loop(const double* data, int64_t lane_stride, int64_t depth,
                                    int64_t width, double* packed) {
  int64_t p = 0;
  for (; p + 8 <= depth; p += 8) {
    Lanes lane[8], pair[8], four[8];
#pragma GCC unroll 8
    for (int64_t j = 0; j < 8; ++j) {
      const double* line = data + std::min(j, width - 1) * lane_stride + p;
      lane[j] = *reinterpret_cast<const UnalignedLanes*>(line);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
      pair[j] = __builtin_shufflevector(lane[j], lane[j + 1], 0, 8, 2, 10, 4, 12, 6, 14);
      pair[j + 1] = __builtin_shufflevector(lane[j], lane[j + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int at = j / 2 * 4 + j % 2;  // pairs of lanes 0..3, then of 4..7
      four[at] = __builtin_shufflevector(pair[at], pair[at + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      four[at + 2] = __builtin_shufflevector(pair[at], pair[at + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    double* out = packed + p * width;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const Lanes row =
          j < 4 ? __builtin_shufflevector(four[j], four[j + 4], 0, 1, 2, 3, 8, 9, 10, 11)
                : __builtin_shufflevector(four[j - 4], four[j], 4, 5, 6, 7, 12, 13, 14, 15);
      *reinterpret_cast<UnalignedLanes*>(out + j * width) = row;
    }
  }
  for (; p < depth; ++p) {
    for (int64_t j = 0; j < width; ++j) packed[p * width + j] = data[j * lane_stride + p];
  }
}
void pack_across(const double* data, int64_t lane_stride, int64_t depth, int64_t width,
                 double* packed) {
  at_level<&pack_across_loop>(data, lane_stride, depth, width, packed);
}

// Steps [begin, begin + count) of one extent of an operand.
struct Range {
  int64_t begin, count;
};

// The same of an operand (k x n) in any type.
void pack_any(const MatrixRef& m, const Range& depth, const Range& lanes, int64_t width,
              double* packed) {
  dispatch_float(m.dtype, [&]<typename T>() {
    const T* data =
        static_cast<const T*>(m.data) + depth.begin * m.row_stride + lanes.begin * m.col_stride;
    if (m.col_stride == 1 && lanes.count == width) {
      at_level<&pack_lines<T>>(data, m.row_stride, depth.count, width, packed);
    } else if (std::is_same_v<T, double> && m.row_stride == 1 && lanes.count == width) {
      pack_across(reinterpret_cast<const double*>(data), m.col_stride, depth.count, width, packed);
    } else {
      pack(data, m.row_stride, m.col_stride, depth.count, lanes.count, width, packed);
    }
  });
}

// The part of a product that one packing of B serves.
struct Block {
  Range depth, cols;
};

// C (m,n) = A (m,k) B (k,n), or C += with accumulate. Of a symmetric product only the tiles that
// reach below the diagonal are computed.
struct Product {
  int64_t m, n, k;
  MatrixRef a, b;
  double* c;
  int64_t ldc;
  bool accumulate = false, symmetric = false;
};

// Memory that is written before it is read, aligned to a cache line, with room for what
// pack_across() writes behind the end.
class Packed {
 public:
  explicit Packed(int64_t count)
      : storage_(new double[static_cast<size_t>(count + 2 * kTileCols)]) {}
  double* values() const {
    const auto address = reinterpret_cast<uintptr_t>(storage_.get());
    return storage_.get() + ((64 - address % 64) % 64) / sizeof(double);
  }

 private:
  std::unique_ptr<double[]> storage_;
};

// C[:, block] += A[:, block depth] * packed B.
void multiply_block(const Context* ctx, const Product& p, const double* packed_b,
                    const Block& block) {
  const int64_t panels = (block.cols.count + kTileCols - 1) / kTileCols;
  const int64_t row_blocks = (p.m + kBlockRows - 1) / kBlockRows;
  const bool few = panels <= kFewPanels && p.a.dtype == BALORA_F64;
  // Few rows and many columns: share the columns out instead of the rows, wide tiles whole.
  const int64_t splits = row_blocks >= 4 ? 1 : std::clamp<int64_t>(panels / kMostPanels, 1, 4);
  const bool wide = platform::cpu().uses(platform::kAvx512);
  const Tile tile = tile_of_this_cpu();
  const int64_t full_panels = block.cols.count / kTileCols;
  share_out(ctx, row_blocks * splits, 1, [&](int64_t begin, int64_t end) {
    const Packed strips(kDepth * kTileRows);
    double* packed_a = strips.values();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row_end = std::min(p.m, (task / splits + 1) * kBlockRows);
      const int64_t panel_begin = panels * (task % splits) / splits;
      const int64_t panel_end = panels * (task % splits + 1) / splits;
      for (int64_t i = task / splits * kBlockRows; i < row_end; i += kTileRows) {
        const int64_t rows = std::min(kTileRows, row_end - i);
        Strip strip = {packed_a, kTileRows, 1};
        if (few && rows == kTileRows) {
          strip = {static_cast<const double*>(p.a.data) + i * p.a.row_stride +
                       block.depth.begin * p.a.col_stride,
                   p.a.col_stride, p.a.row_stride};
        } else {
          pack_any(p.a.transposed(), block.depth, {i, rows}, kTileRows, packed_a);
        }
        for (int64_t panel = panel_begin, count; panel < panel_end; panel += count) {
          const int64_t j = block.cols.begin + panel * kTileCols;
          if (p.symmetric && j >= i + rows) break;
          const double* columns = packed_b + panel * kTileCols * block.depth.count;
          double* c = p.c + i * p.ldc + j;
          const int64_t whole = std::min(panel_end, full_panels) - panel;
          count = wide && rows == kTileRows ? std::clamp<int64_t>(whole, 1, kMostPanels) : 1;
          if (count > 1) {
            kWideTiles[count](strip, columns, block.depth.count, c, p.ldc);
          } else {
            tile(strip, columns, block.depth.count, c, p.ldc, rows,
                 std::min(kTileCols, block.cols.begin + block.cols.count - j));
          }
        }
      }
    }
  });
}

constexpr double kSmallProduct = 1 << 17;  // multiplications that one thread takes

void multiply(const Context* given, const Product& p) {
  Context own = *given;
  const double work =
      static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  if (work <= kSmallProduct) own.num_threads = 1;
  const Context* ctx = &own;
  if (!p.accumulate) {
    parallel_for(ctx, p.m, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(p.n, 1)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) std::fill_n(p.c + i * p.ldc, p.n, 0.0);
                 });
  }
  const Packed panels_of_b(std::min(kDepth, p.k) * (std::min(kBlockCols, p.n) + kTileCols));
  double* packed_b = panels_of_b.values();
  for (int64_t col = 0; col < p.n; col += kBlockCols) {
    for (int64_t depth = 0; depth < p.k; depth += kDepth) {
      const Block block{{depth, std::min(kDepth, p.k - depth)},
                        {col, std::min(kBlockCols, p.n - col)}};
      const int64_t panels = (block.cols.count + kTileCols - 1) / kTileCols;
      parallel_for(ctx, panels, 16, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          const int64_t first = panel * kTileCols;
          pack_any(p.b, block.depth, {col + first, std::min(kTileCols, block.cols.count - first)},
                   kTileCols, packed_b + first * block.depth.count);
        }
      });
      multiply_block(ctx, p, packed_b, block);
    }
  }
}

}  // namespace

void product_f64(const Context* ctx, int64_t m, int64_t n, int64_t k, const MatrixRef& a,
                 const MatrixRef& b, double* c, int64_t ldc) {
  multiply(ctx, {.m = m, .n = n, .k = k, .a = a, .b = b, .c = c, .ldc = ldc});
}

void add_product_f64(const Context* ctx, int64_t m, int64_t n, int64_t k, const MatrixRef& a,
                     const MatrixRef& b, double* c, int64_t ldc) {
  multiply(ctx, {.m = m, .n = n, .k = k, .a = a, .b = b, .c = c, .ldc = ldc, .accumulate = true});
}

void symmetric_product_f64(const Context* ctx, int64_t m, int64_t k, const MatrixRef& a,
                           const MatrixRef& b, double* c, bool accumulate) {
  multiply(ctx, {.m = m,
                 .n = m,
                 .k = k,
                 .a = a,
                 .b = b,
                 .c = c,
                 .ldc = m,
                 .accumulate = accumulate,
                 .symmetric = true});
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < i; ++j) c[j * m + i] = c[i * m + j];
  }
}

}  // namespace balora
