// The packed form of B operands (tiles.h): panels of 32 columns; in a panel, for each 32 of k, two
// tiles of 16 columns; in a tile, 16 rows of (k, k+1) pairs. Edges are padded with zeros.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

// Asks for what is packed 32 rows or columns from here: as many streams of a weight that no cache
// holds, more than the processor foresees by itself. Into L2, which waits for more lines at a time
// than L1 does. Past the end of B it asks for nothing of use.
BALORA_INLINE void prefetch_lines(const bf16* from, int64_t stride) {
  for (int64_t i = 0; i < 32; ++i) __builtin_prefetch(from + i * stride, 0, 2);
}

typedef uint16_t Row32 __attribute__((vector_size(64), may_alias, aligned(2)));

// Rows k and k+1 as 16 words of (k, k+1), from column kFirst on.
template <int kFirst, int... kLane>
BALORA_INLINE void write_words(const Row32& a, const Row32& b, uint32_t* to,
                               std::integer_sequence<int, kLane...>) {
  *reinterpret_cast<Row32*>(to) =
      __builtin_shufflevector(a, b, (kFirst + kLane / 2 + kLane % 2 * 32)...);
}

// 32 x 32 elements whose rows of B are contiguous: each pair of rows is interleaved.
BALORA_INLINE void pack_rows(const TileMatrix& b, uint32_t* to) {
  constexpr std::make_integer_sequence<int, 32> kLanes;
  prefetch_lines(b.at(kTileK, 0).data, b.k_stride);
  for (int64_t pair = 0; pair < kTileK / 2; ++pair) {
    const bf16* const from = b.data + 2 * pair * b.k_stride;
    const Row32 first = *reinterpret_cast<const Row32*>(from);
    const Row32 second = *reinterpret_cast<const Row32*>(from + b.k_stride);
    write_words<0>(first, second, to + pair * 16, kLanes);
    write_words<16>(first, second, to + 256 + pair * 16, kLanes);
  }
}

// The same where its columns are: their pairs are words already.
void pack_columns_block(const TileMatrix& b, uint32_t* to) {
  prefetch_lines(b.at(0, kTileN).data, b.n_stride);
  for (int64_t tile = 0; tile < 2; ++tile) {
    const auto* from = reinterpret_cast<const uint32_t*>(b.data + tile * 16 * b.n_stride);
    transpose16(from, b.n_stride / 2, to + tile * 256, 16);
  }
}

// A block at the edge, or of any strides: gathered with zeros around.
void pack_edge_block(const TileMatrix& b, int64_t k, int64_t n, uint32_t* to) {
  alignas(64) bf16 block[kStepElements] = {};
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < n; ++j) block[i * kTileN + j] = *b.at(i, j).data;
  }
  at_level<&pack_rows>(TileMatrix{block, kTileN, 1}, to);
}

// Values of one row of a weight in blocks that are decoded at a time: a block of every format, and
// 32 rows of them stay in L1.
constexpr int64_t kDecoded = 256;

// kTileN or kTileK rows of decoded values; those that are not there are zeros.
struct DecodedRows {
  alignas(64) bf16 values[kTileN * kDecoded];

  // `rows` rows, row i being the `count` elements from first + i * stride on, and zeros up to whole
  // tiles of columns.
  void decode(const View& weight, int64_t first, int64_t stride, int64_t rows, int64_t count) {
    const int64_t width = round_up(count, kTileK);
    for (int64_t i = 0; i < kTileN; ++i) {
      bf16* const row = values + i * kDecoded;
      const int64_t there = i < rows ? count : 0;
      if (there > 0) decode_values(weight, first + i * stride, there, row);
      std::memset(row + there, 0, static_cast<size_t>(width - there) * sizeof(bf16));
    }
  }
};

// The same of a weight in blocks, whose rows are columns of B, or rows.
void pack_decoded_panels(const TileMatrix& b, int64_t k, int64_t n, int64_t begin, int64_t end,
                         bf16* tiles) {
  DecodedRows decoded;
  const int64_t steps = round_up(k, kTileK) / kTileK;
  const auto to = [&](int64_t panel, int64_t step) {
    return reinterpret_cast<uint32_t*>(tiles + ((panel - begin) * steps + step) * kStepElements);
  };
  if (b.k_stride == 1) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t rows = std::min(kTileN, n - panel * kTileN);
      for (int64_t i = 0; i < k; i += kDecoded) {
        const int64_t count = std::min(kDecoded, k - i);
        decoded.decode(*b.encoded, b.at(i, panel * kTileN).first, b.n_stride, rows, count);
        for (int64_t j = 0; j < count; j += kTileK) {
          pack_columns_block({decoded.values + j, 1, kDecoded}, to(panel, (i + j) / kTileK));
        }
      }
    }
    return;
  }
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t rows = std::min(kTileK, k - step * kTileK);
    for (int64_t j = begin * kTileN; j < std::min(end * kTileN, n); j += kDecoded) {
      const int64_t count = std::min({kDecoded, n - j, end * kTileN - j});
      decoded.decode(*b.encoded, b.at(step * kTileK, j).first, b.k_stride, rows, count);
      for (int64_t i = 0; i < count; i += kTileN) {
        at_level<&pack_rows>(TileMatrix{decoded.values + i, kDecoded, 1},
                             to((j + i) / kTileN, step));
      }
    }
  }
}

}  // namespace

void pack_tile_panels(const TileMatrix& b, int64_t k, int64_t n, int64_t begin, int64_t end,
                      bf16* tiles) {
  if (b.encoded) return pack_decoded_panels(b, k, n, begin, end, tiles);
  const int64_t steps = round_up(k, kTileK) / kTileK, width = end - begin;
  const bool words =
      b.k_stride == 1 && b.n_stride % 2 == 0 && reinterpret_cast<uintptr_t>(b.data) % 4 == 0;
  for (int64_t block = 0; block < width * steps; ++block) {
    // In the order of memory: along a row of B, or a column.
    const int64_t panel = b.n_stride == 1 ? block % width : block / steps;
    const int64_t step = b.n_stride == 1 ? block / width : block % steps;
    const int64_t column = (begin + panel) * kTileN;
    const TileMatrix from = b.at(step * kTileK, column);
    auto* to = reinterpret_cast<uint32_t*>(tiles + (panel * steps + step) * kStepElements);
    const int64_t rows = std::min(kTileK, k - step * kTileK);
    const int64_t cols = std::min(kTileN, n - column);
    if (rows < kTileK || cols < kTileN || !(words || b.n_stride == 1)) {
      pack_edge_block(from, rows, cols, to);
    } else if (b.n_stride == 1) {
      at_level<&pack_rows>(from, to);
    } else {
      pack_columns_block(from, to);
    }
  }
}

void pack_tiles(Context* ctx, const TileMatrix& b, int64_t k, int64_t n, bf16* tiles) {
  const int64_t panel_size = round_up(k, kTileK) * kTileN;
  parallel_for(ctx, round_up(n, kTileN) / kTileN, 1, [&](int64_t begin, int64_t end) {
    pack_tile_panels(b, k, n, begin, end, tiles + begin * panel_size);
  });
}

}  // namespace balora
