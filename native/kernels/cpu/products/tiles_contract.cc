// contract_tiles (tiles.h): p^T x over the rows, the shape of every adapter gradient. p is
// transposed into tiles of bf16 once; x is interleaved into tiles on the way, 128 rows x 32 columns
// at a time, straight from L2. Interleaving within 128-bit lanes leaves the columns of a pair of
// tiles shuffled; they are put right when the sums are written. Ranks that lie side by side, as
// those of one factor do, are read and written 16 at a time.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/products/tiles_target.h"
#include "kernels/cpu/products/tiles_words.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"
#include "tensor/errors.h"

namespace balora {

#ifdef BALORA_TILES
namespace {

using namespace tiles;

constexpr int64_t kBlockSteps = 4;                     // 128 rows
constexpr int64_t kTileElements = kRankTile * kTileK;  // bf16 of an A tile

// The 16 ranks of a tile; those past the last of p are null.
struct TileLines {
  std::span<const RankLine> lines;
  bool adjoining;  // 16, in memory side by side

  TileLines(std::span<const RankLine> p, int64_t tile)
      : lines(p.subspan(static_cast<size_t>(tile * kRankTile))) {
    lines = lines.first(std::min<size_t>(lines.size(), kRankTile));
    adjoining = lines.size() == kRankTile;
    for (size_t r = 1; r < lines.size(); ++r) {
      const RankLine &first = lines[0], &line = lines[r];
      const auto at = static_cast<int64_t>(r);
      adjoining = adjoining && line.data == first.data + at && line.stride == first.stride &&
                  line.scale == first.scale;
    }
  }
  // Whether their sums are written side by side, too.
  bool writes_adjoining() const {
    if (!adjoining || lines[0].out_stride < kRankTile) return false;
    for (size_t r = 1; r < lines.size(); ++r) {
      if (lines[r].out != lines[0].out + r || lines[r].out_stride != lines[0].out_stride)
        return false;
    }
    return true;
  }
};

// p^T as A tiles: for each 32 rows of p and each 16 ranks a tile of p rounded, and with halves one
// of what the rounding left. This is one line of it: a rank's values in one step.
BALORA_INLINE void split_line_loop(const RankLine& line, int64_t first, int64_t count, bf16* high,
                                   bf16* low) {
  const float* from = line.data + first * line.stride;
  for (int64_t j = 0; j < kTileK; ++j) {
    const float value = j < count ? from[j * line.stride] : 0;
    high[j] = to_bf16(value);
    if (low) low[j] = to_bf16(value - to_float(high[j]));
  }
}
void split_line(const RankLine& line, int64_t first, int64_t count, bf16* high, bf16* low) {
  at_level<&split_line_loop>(line, first, count, high, low);
}

// The same for 16 ranks that adjoin.
BF16_TARGET void split_tile(const RankLine& line, int64_t first, int64_t count, bf16* high,
                            bf16* low) {
  Words words[16], rest[16];
#pragma GCC unroll 16
  for (int64_t pair = 0; pair < 16; ++pair) {
    const float* from = line.data + (first + 2 * pair) * line.stride;
    const auto even_there = static_cast<__mmask16>(2 * pair < count ? 0xffff : 0);
    const auto odd_there = static_cast<__mmask16>(2 * pair + 1 < count ? 0xffff : 0);
    const __m512 even = _mm512_maskz_loadu_ps(even_there, from);
    const __m512 odd = _mm512_maskz_loadu_ps(odd_there, from + line.stride);
    words[pair] = word_pairs(even, odd);
    if (low) rest[pair] = word_pairs(lanes::rounding_left(even), lanes::rounding_left(odd));
  }
  transpose_words(words);
  std::memcpy(high, words, sizeof words);
  if (!low) return;
  transpose_words(rest);
  std::memcpy(low, rest, sizeof rest);
}

void pack_step(std::span<const TileLines> tiles, int64_t m, int64_t step, bool halves, bf16* to) {
  const int64_t first = step * kTileK, count = std::min(kTileK, m - first);
  for (const TileLines& tile : tiles) {
    bf16* const low = halves ? to + kTileElements : nullptr;
    if (tile.adjoining) {
      split_tile(tile.lines[0], first, count, to, low);
    } else {
      std::fill_n(to, (halves ? 2 : 1) * kTileElements, bf16{0});
      for (size_t r = 0; r < tile.lines.size(); ++r) {
        const auto at = static_cast<int64_t>(r) * kTileK;
        split_line(tile.lines[r], first, count, to + at, low ? low + at : nullptr);
      }
    }
    to += (halves ? 2 : 1) * kTileElements;
  }
}

// 32 rows of x from column `col` into two tiles of row pairs. Rows from m and columns from k on are
// zero. The next columns are asked for: 128 rows at a time are more streams than the processor
// foresees by itself.
BF16_TARGET void interleave(const bf16* x, int64_t m, int64_t k, int64_t row, int64_t col,
                            bf16* to) {
  const int64_t width = std::min<int64_t>(k - col, 32);
  const auto mask = static_cast<__mmask32>(width == 32 ? ~0u : (1u << width) - 1);
  for (int64_t pair = 0; pair < 16; ++pair) {
    const int64_t n = row + 2 * pair;
    const bf16* from = x + n * k + col;
    __builtin_prefetch(from + 32);
    __builtin_prefetch(from + k + 32);
    const __m512i a = n < m ? _mm512_maskz_loadu_epi16(mask, from) : _mm512_setzero_si512();
    const __m512i b = n + 1 < m ? _mm512_maskz_loadu_epi16(mask, from + k) : _mm512_setzero_si512();
    _mm512_store_si512(to + pair * 32, _mm512_unpacklo_epi16(a, b));
    _mm512_store_si512(to + kTileElements + pair * 32, _mm512_unpackhi_epi16(a, b));
  }
}

// Column of x (within its 32) that stands at `lane` of tile `half`.
constexpr int64_t true_column(int64_t half, int64_t lane) {
  return lane / 4 * 8 + half * 4 + lane % 4;
}

// The first `width` of a rank's 32 sums, from a row of two tiles, in the order of x's columns.
void write_line(const float* from, int64_t width, const RankLine& line, int64_t col) {
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t j = true_column(half, lane);
      if (j < width) line.out[(col + j) * line.out_stride] = line.scale * from[half * 256 + lane];
    }
  }
}

// The same for 16 ranks whose sums are written side by side, column by column.
BF16_TARGET void write_columns(const float* from, int64_t width, const RankLine& line,
                               int64_t col) {
  const __m512 scale = _mm512_set1_ps(line.scale);
  for (int64_t half = 0; half < 2; ++half) {
    Words words[16];
    std::memcpy(words, from + half * 256, sizeof words);
    transpose_words(words);
#pragma GCC unroll 16
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t j = true_column(half, lane);
      if (j >= width) continue;
      _mm512_storeu_ps(line.out + (col + j) * line.out_stride,
                       _mm512_mul_ps(scale, (__m512)words[lane]));
    }
  }
}

struct Contraction {
  const bf16* x;
  int64_t m, k;
  const bf16* pt;  // pack_step's tiles, all steps
  int64_t rank_tiles;
  float* sums;  // per column panel, per rank tile: two tiles of 16 x 16
};

constexpr int64_t kSumElements = 2 * kRankTile * 16;  // of one rank tile and one panel of columns

struct AmxCore {
  AMX_TARGET static void open() { configure_tiles(); }
  AMX_TARGET static void close() { _tile_release(); }

  // sums += (the kHalves tiles of p^T) x (two tiles of x), over `count` steps.
  template <int kHalves>
  AMX_TARGET static void multiply(const bf16* a, int64_t a_step, const bf16* b, int64_t count,
                                  bool first, float* sums) {
    if (first) {
      _tile_zero(0);
      _tile_zero(1);
    } else {
      _tile_loadd(0, sums, 64);
      _tile_loadd(1, sums + 256, 64);
    }
    for (int64_t s = 0; s < count; ++s, a += a_step, b += 2 * kTileElements) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b, 64);
      _tile_loadd(7, b + kTileElements, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kHalves == 2) {
        _tile_loadd(5, a + kTileElements, 64);
        _tile_dpbf16ps(0, 5, 6);
        _tile_dpbf16ps(1, 5, 7);
      }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
  }
};

struct Avx512Core {
  static constexpr int kRanks = 8;  // x 2 vectors of sums

  static void open() {}
  static void close() {}

  template <int kHalves>
  BF16_TARGET static void multiply(const bf16* a, int64_t a_step, const bf16* b, int64_t count,
                                   bool first, float* sums) {
    for (int64_t r = 0; r < kRankTile; r += kRanks) {
      multiply_ranks<kHalves>(a + r * kTileK, a_step, b, count, first, sums + r * 16);
    }
  }

 private:
  template <int kHalves>
  BF16_TARGET static void multiply_ranks(const bf16* a, int64_t a_step, const bf16* b,
                                         int64_t count, bool first, float* to) {
    __m512 sums[kRanks][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRanks; ++r) {
      sums[r][0] = first ? _mm512_setzero_ps() : _mm512_load_ps(to + r * 16);
      sums[r][1] = first ? _mm512_setzero_ps() : _mm512_load_ps(to + 256 + r * 16);
    }
    for (int64_t s = 0; s < count; ++s, a += a_step, b += 2 * kTileElements) {
      for (int64_t pair = 0; pair < kTileK / 2; ++pair) {
        const auto left = (__m512bh)_mm512_load_si512(b + pair * 32);
        const auto right = (__m512bh)_mm512_load_si512(b + kTileElements + pair * 32);
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half) {
#pragma GCC unroll 8
          for (int r = 0; r < kRanks; ++r) {
            const __m512bh value = broadcast_pair(a + half * kTileElements + r * kTileK + 2 * pair);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], value, left);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], value, right);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRanks; ++r) {
      _mm512_store_ps(to + r * 16, sums[r][0]);
      _mm512_store_ps(to + 256 + r * 16, sums[r][1]);
    }
  }
};

template <typename Core, int kHalves>
AMX_TARGET void contract_panels(const Contraction& c, int64_t begin, int64_t end) {
  Core::open();
  alignas(64) bf16 wide[kBlockSteps * 2 * kTileElements];
  const int64_t steps = round_up(c.m, kTileK) / kTileK;
  const int64_t a_step = c.rank_tiles * kHalves * kTileElements;
  for (int64_t first = 0; first < steps; first += kBlockSteps) {
    const int64_t count = std::min(kBlockSteps, steps - first);
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t s = 0; s < count; ++s) {
        interleave(c.x, c.m, c.k, (first + s) * kTileK, panel * 32, wide + s * 2 * kTileElements);
      }
      for (int64_t tile = 0; tile < c.rank_tiles; ++tile) {
        const bf16* a = c.pt + first * a_step + tile * kHalves * kTileElements;
        float* sums = c.sums + (panel * c.rank_tiles + tile) * kSumElements;
        Core::template multiply<kHalves>(a, a_step, wide, count, first == 0, sums);
      }
    }
  }
  Core::close();
}

using ContractPanels = void (*)(const Contraction&, int64_t, int64_t);
template <typename Core>
ContractPanels contract_with(bool halves) {
  return halves ? &contract_panels<Core, 2> : &contract_panels<Core, 1>;
}

void write_panel(const Contraction& c, std::span<const TileLines> tiles, int64_t panel) {
  const int64_t col = panel * 32, width = std::min<int64_t>(c.k - col, 32);
  const float* from = c.sums + panel * c.rank_tiles * kSumElements;
  for (const TileLines& tile : tiles) {
    if (tile.writes_adjoining()) {
      write_columns(from, width, tile.lines[0], col);
    } else {
      for (size_t r = 0; r < tile.lines.size(); ++r) {
        write_line(from + static_cast<int64_t>(r) * 16, width, tile.lines[r], col);
      }
    }
    from += kSumElements;
  }
}

}  // namespace

void contract_tiles(Context* ctx, const bf16* x, int64_t m, int64_t k, std::span<const RankLine> p,
                    Rounding rounding) {
  const auto rank = static_cast<int64_t>(p.size());
  const int64_t rank_tiles = round_up(rank, kRankTile) / kRankTile;
  const int64_t steps = round_up(m, kTileK) / kTileK, panels = round_up(k, 32) / 32;
  const bool halves = rounding == Rounding::kHalves;
  std::vector<TileLines> tiles;
  for (int64_t tile = 0; tile < rank_tiles; ++tile) tiles.emplace_back(p, tile);
  const int64_t step_elements = rank_tiles * (halves ? 2 : 1) * kTileElements;
  const Scratch<bf16> packed(ctx, steps * step_elements);
  const Scratch<float> all_sums(ctx, panels * rank_tiles * kSumElements);
  bf16* const pt = packed.data();
  float* const sums = all_sums.data();
  parallel_for(ctx, steps, 8, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) pack_step(tiles, m, s, halves, pt + s * step_elements);
  });
  const Contraction work = {
      .x = x, .m = m, .k = k, .pt = pt, .rank_tiles = rank_tiles, .sums = sums};
  const auto contract =
      tiles_use_amx() ? contract_with<AmxCore>(halves) : contract_with<Avx512Core>(halves);
  parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
    contract(work, begin, end);
    for (int64_t panel = begin; panel < end; ++panel) write_panel(work, tiles, panel);
  });
}

#else

void contract_tiles(Context*, const bf16*, int64_t, int64_t, std::span<const RankLine>, Rounding) {
  throw UnsupportedError("this build has no tile kernels");
}

#endif

}  // namespace balora
