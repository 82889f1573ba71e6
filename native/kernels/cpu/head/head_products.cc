// Threads share the columns of a product in tiles, and rows only where the columns do not share out
// evenly: each packs what it multiplies by, for itself, so that it waits for nobody and its packed
// block never leaves its L2.
#include "kernels/cpu/head/head_products.h"

#include <algorithm>
#include <cstddef>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/products/gemm.h"
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

// Tokens whose part of a head is widened or decoded at a time, 4 MiB in f32.
int64_t widened_tokens(const View& w) {
  constexpr int64_t kElements = int64_t{1} << 20, kLeast = 32;
  return std::max(kElements / std::max<int64_t>(w.shape[1], 1), kLeast) / kLeast * kLeast;
}

// Whether the rows of a head are read where they lie.
bool is_wide(const View& w) {
  return !w.encoding && w.dtype == BALORA_F32 && w.stride[0] == w.shape[1];
}

// Rows of heads in f32: where they lie, or in scratch, until the next are asked for.
class WidenedRows {
 public:
  WidenedRows(Context* ctx, std::span<const LogitsOf<float>> products, int64_t most)
      : ctx_(ctx),
        decoded_(ctx, most_bytes(products, most)),
        wide_(ctx, elements(products, most)) {}

  const float* rows(const View& w, int64_t first, int64_t count) const {
    const int64_t columns = w.shape[1];
    const void* from = w.encoding ? nullptr : rows_of(&w, first);
    if (is_wide(w)) return static_cast<const float*>(from);
    int64_t ld = w.stride[0];
    if (w.encoding) {  // its values are of its own type
      decode_rows(ctx_, w, first, first + count, w.dtype, decoded_.data());
      if (w.dtype == BALORA_F32) return reinterpret_cast<const float*>(decoded_.data());
      from = decoded_.data(), ld = columns;
    }
    convert_rows(ctx_, {from, w.dtype, ld}, {wide_.data(), BALORA_F32, columns}, count, columns);
    return wide_.data();
  }

 private:
  static int64_t most_bytes(std::span<const LogitsOf<float>> products, int64_t most) {
    int64_t bytes = 0;
    for (const LogitsOf<float>& product : products) {
      const View& w = *product.w;
      if (w.encoding) bytes = std::max(bytes, most * w.shape[1] * element_size(w.dtype));
    }
    return bytes;
  }
  static int64_t elements(std::span<const LogitsOf<float>> products, int64_t most) {
    int64_t count = 0;
    for (const LogitsOf<float>& product : products) {
      const View& w = *product.w;
      const bool decoded_only = w.encoding && w.dtype == BALORA_F32;
      if (!is_wide(w) && !decoded_only) count = std::max(count, most * w.shape[1]);
    }
    return count;
  }

  Context* ctx_;
  Scratch<std::byte> decoded_;
  Scratch<float> wide_;
};

}  // namespace

void head_logits_tiles(Context* ctx, std::span<const LogitsOf<float>> products, int64_t first_row,
                       int64_t rows) {
  const View& w = *products[0].w;
  const int64_t vocabulary = w.shape[0], channels = w.shape[1], ld = logits_ld(vocabulary);
  const int64_t block =
      std::min(tokens_of_block(channels, kBlockBytes), round_up(vocabulary, kTileN));
  const Extents extents = {rows, vocabulary, channels, channels, 1};
  for_parts(ctx, extents, tiles_size(channels, block), [&](const Part& part) {
    for (int64_t first = part.first; first < part.last; first += block) {
      const int64_t count = std::min(block, part.last - first);
      pack_tile_panels(TileMatrix::of(w, first * channels, true), channels, count, 0,
                       round_up(count, kTileN) / kTileN, part.tiles);
      for (const LogitsOf<float>& product : products) {
        const auto* const h = static_cast<const bf16*>(rows_of(product.h, first_row + part.row));
        const TileSum sum = {count,
                             {{h, product.h->stride[0], channels, part.tiles}},
                             {product.logits + part.row * ld + first, BALORA_F32, ld}};
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

void widened_logits(Context* ctx, std::span<const LogitsOf<float>> products, int64_t first,
                    int64_t rows) {
  const View& w = *products[0].w;
  const int64_t vocabulary = w.shape[0], columns = w.shape[1], all = std::ssize(products);
  const Scratch<float> scratch(ctx, all * rows * columns);
  float* const wide = scratch.data();
  for (int64_t i = 0; i < all; ++i) {
    const View& h = *products[static_cast<size_t>(i)].h;
    convert_rows(ctx, {rows_of(&h, first), h.dtype, h.stride[0]},
                 {wide + i * rows * columns, BALORA_F32, columns}, rows, columns);
  }
  const int64_t block = widened_tokens(w);
  const WidenedRows heads(ctx, products, std::min(block, vocabulary));
  for (int64_t token = 0; token < vocabulary; token += block) {
    const int64_t count = std::min(block, vocabulary - token);
    const View* last = nullptr;
    const float* head = nullptr;
    for (int64_t i = 0; i < all; ++i) {
      const LogitsOf<float>& product = products[static_cast<size_t>(i)];
      if (product.w != last) head = heads.rows(*product.w, token, count);
      last = product.w;
      gemm(ctx, {rows, count, columns}, {wide + i * rows * columns, BALORA_F32, columns},
           {head, BALORA_F32, columns, true},
           {product.logits + token, BALORA_F32, logits_ld(vocabulary)});
    }
  }
}

}  // namespace balora
