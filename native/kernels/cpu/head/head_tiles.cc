// head_tiles.h. Threads share the columns of a product, and rows only where the columns do not
// share out evenly: each packs what it multiplies by, for itself, so that it waits for nobody and
// its packed block never leaves its L2.
#include "kernels/cpu/head/head_tiles.h"

#include <algorithm>

#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"

namespace balora {
namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 19;  // of a packed block: half an L2 of 1 MiB
// The same of a block that is summed over, on AMX, whose L2 has 2 MiB: sums are loaded and stored
// half as often, which matters beside such fast products.
constexpr int64_t kAmxSummedBytes = int64_t{1} << 20;

// The tokens of a block of `bytes`.
int64_t tokens_of_block(int64_t channels, int64_t bytes) {
  const int64_t fitting = bytes / (channels * static_cast<int64_t>(sizeof(bf16)));
  return std::max<int64_t>(fitting / kTileN, 4) * kTileN;
}

// Rows [row, row + rows) and columns [first, last) of a product, and a thread's own memory for it.
struct Part {
  int64_t row, rows, first, last;
  bf16 *tiles, *padding;
};

struct Grid {
  int64_t rows, columns;
};

// Groups of rows and of columns, a thread for each of their pairs. Each group of rows packs all
// columns anew, about a tenth of what it multiplies.
Grid grid_of(int64_t threads, int64_t row_panels, int64_t column_panels) {
  constexpr double kPacking = 0.1;
  Grid best = {1, threads};
  double most = 0;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    if (threads % rows != 0) continue;
    const double value = evenness(row_panels, rows) * evenness(column_panels, threads / rows) /
                         (1 + kPacking * static_cast<double>(rows));
    if (value > most) most = value, best = {rows, threads / rows};
  }
  return best;
}

// A product of rows x columns with `terms` terms, its sums over `inner` in blocks of at
// most `block`.
struct Extents {
  int64_t rows, columns, inner, block, terms;

  // Elements of a part's padding: the last panel of rows, and all rows where blocks may be ragged.
  int64_t padding() const {
    const int64_t padded = kPanelRows + (inner % kTileK != 0 ? rows : 0);
    return terms * padded * round_up(block, kTileK);
  }
};

// Calls body(part) for each thread's part. A part's memory takes tiles of `size` elements.
template <typename Body>
void for_parts(Context* ctx, const Extents& extents, int64_t size, const Body& body) {
  const int64_t rows = extents.rows, columns = extents.columns;
  const int64_t row_panels = round_up(rows, kPanelRows) / kPanelRows;
  const int64_t column_panels = round_up(columns, kTileN) / kTileN;
  const Grid grid = grid_of(std::max(ctx->num_threads, 1), row_panels, column_panels);
  const int64_t parts = grid.rows * grid.columns;
  constexpr int64_t kPage = 4096 / sizeof(bf16);  // parts share no cache line
  const int64_t each = round_up(size, kPage) + round_up(extents.padding(), kPage);
  const Scratch<bf16> scratch(ctx, parts * each);
  bf16* const memory = scratch.data();
  parallel_for(ctx, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t r = p / grid.columns, c = p % grid.columns;
      const int64_t row = r * row_panels / grid.rows * kPanelRows;
      const int64_t row_end = std::min((r + 1) * row_panels / grid.rows * kPanelRows, rows);
      const int64_t first = c * column_panels / grid.columns * kTileN;
      const int64_t last = std::min((c + 1) * column_panels / grid.columns * kTileN, columns);
      bf16* tiles = memory + p * each;
      if (row < row_end && first < last) {
        body(Part{.row = row,
                  .rows = row_end - row,
                  .first = first,
                  .last = last,
                  .tiles = tiles,
                  .padding = tiles + round_up(size, kPage)});
      }
    }
  });
}

}  // namespace

bool head_fits_tiles(const View& h, const View& w) {
  return h.dtype == BALORA_BF16 && w.dtype == BALORA_BF16 && tiles_ready() && view_contiguous(w) &&
         view_numel(w) > 0;
}

void head_logits_tiles(Context* ctx, std::span<const HeadLogits> products, int64_t rows,
                       const View& w) {
  const int64_t vocabulary = w.shape[0], channels = w.shape[1];
  const int64_t block =
      std::min(tokens_of_block(channels, kBlockBytes), round_up(vocabulary, kTileN));
  const Extents extents = {rows, vocabulary, channels, channels, 1};
  for_parts(ctx, extents, tiles_size(channels, block), [&](const Part& part) {
    for (int64_t first = part.first; first < part.last; first += block) {
      const int64_t count = std::min(block, part.last - first);
      pack_tile_panels(TileMatrix::of(w, first * channels, true), channels, count, 0,
                       round_up(count, kTileN) / kTileN, part.tiles);
      for (const HeadLogits& product : products) {
        const TileSum sum = {
            count,
            {{product.h + part.row * product.ld, product.ld, channels, part.tiles}},
            {product.z + part.row * product.z_ld + first, BALORA_F32, product.z_ld}};
        run_tiles_alone(part.rows, {&sum, 1}, part.padding);
      }
    }
  });
}

void head_gradient_tiles(Context* ctx, std::span<const bf16* const> parts, int64_t ld, int64_t rows,
                         const View& w, float* dh) {
  const int64_t vocabulary = w.shape[0], channels = w.shape[1];
  const int64_t bytes = tiles_use_amx() ? kAmxSummedBytes : kBlockBytes;
  const int64_t block = std::min(tokens_of_block(channels, bytes), round_up(vocabulary, kTileN));
  const Extents extents = {rows, channels, vocabulary, block, static_cast<int64_t>(parts.size())};
  for_parts(ctx, extents, tiles_size(block, channels), [&](const Part& part) {
    const int64_t width = part.last - part.first;
    for (int64_t first = 0; first < vocabulary; first += block) {
      const int64_t count = std::min(block, vocabulary - first);
      pack_tile_panels(TileMatrix::of(w, first * channels + part.first, false), count, width, 0,
                       round_up(width, kTileN) / kTileN, part.tiles);
      TileSum sum = {
          width, {}, {dh + part.row * channels + part.first, BALORA_F32, channels, first > 0}};
      for (const bf16* dz : parts) {
        sum.terms.push_back({dz + part.row * ld + first, ld, count, part.tiles});
      }
      run_tiles_alone(part.rows, {&sum, 1}, part.padding);
    }
  });
}

}  // namespace balora
