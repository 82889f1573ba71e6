#include "kernels/cpu/linalg/scaled_gram.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/linalg/low_precision_gram_bf16.h"
#include "kernels/cpu/products/product_f64.h"
#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

constexpr int64_t kDepth = 256;       // rows that are summed in f32
constexpr int64_t kPanelCols = 64;    // columns of B that a thread keeps in its cache
constexpr int64_t kStripRows = 32;    // of a tile of g
constexpr int64_t kChunkRows = 4096;  // rows that are packed at once
constexpr int64_t kSkewBytes = 64;    // so that lines of a power of two do not share cache sets

// tile_gemm's operands in 32-bit words: one f32, or two bf16 that follow each other in k.
template <typename T>
constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));

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

BALORA_INLINE void multiply_row_loop(float* row, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) row[i] *= factor;
}
void multiply_row(float* row, int64_t count, float factor) {
  at_level<&multiply_row_loop>(row, count, factor);
}

BALORA_INLINE void add_multiple_loop(const float* from, double factor, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * static_cast<double>(from[i]);
}
void add_multiple(const float* from, double factor, int64_t count, double* to) {
  at_level<&add_multiple_loop>(from, factor, count, to);
}

// The operands of one chunk of rows: X^T (columns, depth) and X in panels of columns, each as
// tile_gemm wants B.
template <typename T>
class Operands {
 public:
  Operands(Context* ctx, const View& a, const float* scale, int64_t most_depth)
      : ctx_(ctx), a_(a), scale_(scale), columns_(tile_padded(a.shape[1])) {
    left_words_ = most_depth / kPerWord<T> + kSkewBytes / 4;
    left_ = workspace<uint32_t>(ctx, columns_ * left_words_);
    right_ = workspace<uint32_t>(ctx, columns_ * (most_depth / kPerWord<T>));
  }

  void pack(const std::vector<RowBlock>& blocks) {
    words_ = (blocks.back().at + tile_padded(blocks.back().count)) / kPerWord<T>;
    for (const RowBlock& block : blocks) {
      constexpr int64_t kRows = 16 * kPerWord<T>;
      parallel_for(ctx_, tile_padded(block.count) / kRows, 1, [&](int64_t begin, int64_t end) {
        std::vector<T> strip(static_cast<size_t>(kRows * columns_));
        for (int64_t i = begin; i < end; ++i) pack_strip(block, i * kRows, strip.data());
      });
    }
  }

  int64_t columns() const { return columns_; }
  int64_t left_ld() const { return left_words_ * kPerWord<T>; }
  const T* left(int64_t column, int64_t depth) const {
    return reinterpret_cast<const T*>(left_ + column * left_words_) + depth;
  }
  const T* right(int64_t panel, int64_t width, int64_t depth) const {
    return reinterpret_cast<const T*>(right_ + panel * words_ + depth / kPerWord<T> * width);
  }

 private:
  // 16 words of rows from row `first` of a block on; zeros behind its end.
  void pack_strip(const RowBlock& block, int64_t first, T* strip) {
    constexpr int64_t kRows = 16 * kPerWord<T>;
    const int64_t own = a_.shape[1], rows = std::clamp<int64_t>(block.count - first, 0, kRows);
    for (int64_t i = 0; i < rows; ++i) {
      T* to = strip + i * columns_;
      const int64_t row = block.row + first + i;
      if constexpr (std::is_same_v<T, bf16>) {
        std::copy_n(static_cast<const bf16*>(a_.data) + row * own, own, to);
      } else {
        dispatch_float(a_.dtype, [&]<typename S>() {
          convert_row(static_cast<const S*>(a_.data) + row * own, to, own);
        });
        multiply_row(to, own, scale_[row]);
      }
      std::fill(to + own, to + columns_, T{});
    }
    std::fill(strip + rows * columns_, strip + kRows * columns_, T{});
    const int64_t word = (block.at + first) / kPerWord<T>;
    for (int64_t column = 0; column < columns_; column += 16) {
      alignas(64) uint32_t lines[16 * 16];
      if constexpr (std::is_same_v<T, bf16>) {
        lanes::read_lines(strip + column, columns_, true, lines);
      } else {
        for (int64_t i = 0; i < 16; ++i) {
          std::memcpy(lines + i * 16, strip + i * columns_ + column, 64);
        }
      }
      const int64_t panel = column / kPanelCols * kPanelCols;
      const int64_t width = std::min(kPanelCols, columns_ - panel);
      uint32_t* right = right_ + panel * words_ + word * width + column - panel;
      for (int64_t i = 0; i < 16; ++i) std::memcpy(right + i * width, lines + i * 16, 64);
      transpose16(lines, 16, left_ + column * left_words_ + word, left_words_);
    }
  }

  Context* ctx_;
  const View& a_;
  const float* scale_;
  int64_t columns_;  // padded
  int64_t left_words_, words_ = 0;
  uint32_t *left_, *right_;
};

// Adds the tile of g at (row, column) and its mirror image, of which only what is of g. The image
// is turned in a cache first, so that its lines, which are a row of g apart, are written whole.
void add_tile(const double* sums, int64_t row, int64_t column, int64_t width, int64_t order,
              double* g) {
  const int64_t rows = std::min(kStripRows, order - row);
  alignas(64) double image[kPanelCols * kStripRows];
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
void add_panel(const Operands<T>& operands, const std::vector<RowBlock>& blocks, int64_t panel,
               int64_t order, double* g) {
  const int64_t width = std::min(kPanelCols, operands.columns() - panel);
  alignas(64) float tile[kStripRows * kPanelCols];
  alignas(64) double sums[kStripRows * kPanelCols];
  for (int64_t row = panel; row < order; row += kStripRows) {
    std::fill_n(sums, kStripRows * width, 0.0);
    for (const RowBlock& block : blocks) {
      tile_gemm({kStripRows, width, tile_padded(block.count)}, operands.left(row, block.at),
                operands.left_ld(), operands.right(panel, width, block.at), tile, width, false);
      add_multiple(tile, block.factor, kStripRows * width, sums);
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
  Operands<T> operands(ctx, a, scale, most);
  const int64_t panels = (order + kPanelCols - 1) / kPanelCols;
  for (const std::vector<RowBlock>& blocks : chunks) {
    if (is_stopped(ctx)) return;
    operands.pack(blocks);
    // A long panel and a short one by turns, so that each thread has as much to do.
    parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
      const TileScope tiles;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i % 2 == 0 ? i / 2 : panels - 1 - i / 2;
        add_panel<T>(operands, blocks, panel * kPanelCols, order, g);
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
