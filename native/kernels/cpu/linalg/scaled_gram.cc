#include "kernels/cpu/linalg/scaled_gram.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/linalg/gram_operands.h"
#include "kernels/cpu/products/product_f64.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

constexpr int64_t kDepth = 256;       // rows that are summed in f32
constexpr int64_t kStripRows = 32;    // of a tile of g
constexpr int64_t kChunkRows = 4096;  // rows that are packed at once

// Rows whose products are summed in f32, behind `at` rows of the packed operands; the sum is
// multiplied by `factor`.
struct RowBlock {
  int64_t row, count, at;
  double factor;
};

// Rows of bf16 stay as they are, so that a block has rows of one scale.
template <typename T>
std::vector<RowBlock> blocks_of(int64_t begin, int64_t end, const float* scale) {
  constexpr bool kByScale = std::is_same_v<T, bf16>;
  std::vector<RowBlock> blocks;
  int64_t at = 0;
  for (int64_t row = begin; row < end;) {
    int64_t count = 1;
    while (row + count < end && count < kDepth && (!kByScale || scale[row + count] == scale[row])) {
      ++count;
    }
    const double factor = kByScale ? static_cast<double>(scale[row]) * scale[row] : 1;
    blocks.push_back({row, count, at, factor});
    at += tile_padded(count);
    row += count;
  }
  return blocks;
}

// Whether rows of bf16 that stay as they are take no more memory than widened ones. They do where
// runs of one scale are short, since each begins a block, which is padded to whole tiles.
bool has_long_runs(const float* scale, int64_t n) {
  int64_t padded = 0;
  for (const RowBlock& block : blocks_of<bf16>(0, n, scale)) padded += tile_padded(block.count);
  return padded <= 2 * tile_padded(n);
}

BALORA_INLINE void multiply_row(float* row, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) row[i] *= factor;
}

BALORA_INLINE void add_multiple(const float* from, double factor, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * static_cast<double>(from[i]);
}

// 16 words of rows of X from row `first` of a block on, in `strip` and then in the operands; zeros
// behind its end.
template <typename T>
void pack_strip(const View& a, const float* scale, const RowBlock& block, int64_t first, T* strip,
                const GramOperands<T>& operands) {
  constexpr int64_t kRows = 16 * kPerWord<T>;
  const int64_t columns = operands.columns, own = a.shape[1];
  const int64_t rows = std::clamp<int64_t>(block.count - first, 0, kRows);
  for (int64_t i = 0; i < rows; ++i) {
    T* to = strip + i * columns;
    const int64_t row = block.row + first + i;
    if constexpr (std::is_same_v<T, bf16>) {
      std::copy_n(static_cast<const bf16*>(a.data) + row * own, own, to);
    } else {
      dispatch_float(a.dtype, [&]<typename S>() {
        convert_row(static_cast<const S*>(a.data) + row * own, to, own);
      });
      at_level<&multiply_row>(to, own, scale[row]);
    }
    std::fill(to + own, to + columns, T{});
  }
  std::fill(strip + rows * columns, strip + kRows * columns, T{});
  for (int64_t column = 0; column < columns; column += 16) {
    alignas(64) uint32_t lines[16 * 16];
    at_level<&read_words<T, T>>(strip + column, columns, true, lines);
    operands.place(lines, true, column, (block.at + first) / kPerWord<T>);
  }
}

template <typename T>
void pack(const Context* ctx, const View& a, const float* scale,
          const std::vector<RowBlock>& blocks, const GramOperands<T>& operands) {
  constexpr int64_t kRows = 16 * kPerWord<T>;
  for (const RowBlock& block : blocks) {
    parallel_for(ctx, tile_padded(block.count) / kRows, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> strip(static_cast<size_t>(kRows * operands.columns));
      for (int64_t i = begin; i < end; ++i) {
        pack_strip(a, scale, block, i * kRows, strip.data(), operands);
      }
    });
  }
}

// Adds the tile of g at (row, column) and its mirror image, of which only what is of g. The image
// is turned in a cache first, so that its lines, which are a row of g apart, are written whole.
void add_tile(const double* sums, int64_t row, int64_t column, int64_t width, int64_t order,
              double* g) {
  const int64_t rows = std::min(kStripRows, order - row);
  alignas(64) double image[kGramPanel * kStripRows];
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t columns = std::min(width, row + i - column + 1);
    double* line = g + (row + i) * order + column;
    for (int64_t j = 0; j < columns; ++j) line[j] += sums[i * width + j];
    for (int64_t j = 0; j < columns; ++j) image[j * kStripRows + i] = line[j];
  }
  for (int64_t j = 0; j < std::min(width, row + rows - column); ++j) {
    const int64_t first = std::max<int64_t>(column + j - row, 0);
    std::copy(image + j * kStripRows + first, image + j * kStripRows + rows,
              g + (column + j) * order + row + first);
  }
}

template <typename T>
void add_panel(const GramOperands<T>& operands, const std::vector<RowBlock>& blocks, int64_t panel,
               int64_t order, double* g) {
  const int64_t width = operands.width(panel);
  alignas(64) float tile[kStripRows * kGramPanel];
  alignas(64) double sums[kStripRows * kGramPanel];
  for (int64_t row = panel; row < order; row += kStripRows) {
    std::fill_n(sums, kStripRows * width, 0.0);
    for (const RowBlock& block : blocks) {
      operands.multiply(row, kStripRows, panel, block.at, tile_padded(block.count), tile, width);
      at_level<&add_multiple>(tile, block.factor, kStripRows * width, sums);
    }
    add_tile(sums, row, panel, width, order, g);
  }
}

template <typename T>
void add_in(Context* ctx, const View& a, const float* scale, double* g) {
  const int64_t n = a.shape[0], order = a.shape[1];
  std::vector<std::vector<RowBlock>> chunks;
  int64_t most = 0;
  for (int64_t begin = 0; begin < n; begin += kChunkRows) {
    chunks.push_back(blocks_of<T>(begin, std::min(n, begin + kChunkRows), scale));
    most = std::max(most, chunks.back().back().at + tile_padded(chunks.back().back().count));
  }
  if (chunks.empty() || order == 0) return;
  GramOperands<T> operands{.columns = tile_padded(order),
                           .left_step = GramOperands<T>::left_words(most)};
  operands.left = workspace<uint32_t>(ctx, operands.columns * operands.left_step);
  operands.right = workspace<uint32_t>(ctx, operands.columns * GramOperands<T>::right_words(most));
  const int64_t panels = (order + kGramPanel - 1) / kGramPanel;
  for (const std::vector<RowBlock>& blocks : chunks) {
    if (is_stopped(ctx)) return;
    operands.words =
        GramOperands<T>::right_words(blocks.back().at + tile_padded(blocks.back().count));
    pack(ctx, a, scale, blocks, operands);
    // A long panel and a short one by turns, so that each thread has as much to do.
    parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
      const TileScope tiles;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i % 2 == 0 ? i / 2 : panels - 1 - i / 2;
        add_panel(operands, blocks, panel * kGramPanel, order, g);
      }
    });
  }
}

void add_in_f64(Context* ctx, const View& a, const float* scale, double* g) {
  const int64_t n = a.shape[0], order = a.shape[1];
  auto* scaled = workspace<double>(ctx, n * order);
  for (int64_t i = 0; i < n; ++i) {
    const double* row = data_of<double>(&a) + i * order;
    for (int64_t j = 0; j < order; ++j) scaled[i * order + j] = row[j] * scale[i];
  }
  const MatrixRef ref{scaled, BALORA_F64, order, 1};
  symmetric_product_f64(ctx, order, n, ref.transposed(), ref, g, true);
}

}  // namespace

void add_scaled_gram(Context* ctx, const View& a, const float* scale, double* g) {
  if (a.dtype == BALORA_F64) return add_in_f64(ctx, a, scale, g);
  if (a.dtype == BALORA_BF16 && tile_gemm_has_bf16() && has_long_runs(scale, a.shape[0])) {
    return add_in<bf16>(ctx, a, scale, g);
  }
  add_in<float>(ctx, a, scale, g);
}

}  // namespace balora
