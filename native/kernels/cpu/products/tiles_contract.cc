// contract_tiles (tiles.h): p^T x over the rows, the shape of every adapter gradient. p is
// transposed into tiles of bf16 once, then each core goes by panels of x's columns. Ranks that lie
// side by side, as those of one factor do, are read and written 16 at a time.
#include <algorithm>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cpu/products/tiles_job.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"

namespace balora {
namespace {

using namespace tiles;

// Whether 16 ranks are written side by side.
bool writes_adjoining(std::span<const RankLine> lines) {
  bool adjoining = std::cmp_equal(lines.size(), kRankTile) && lines[0].out_stride >= kRankTile;
  for (size_t r = 1; r < lines.size() && adjoining; ++r) {
    adjoining = lines[r].out == lines[0].out + r && lines[r].out_stride == lines[0].out_stride &&
                lines[r].scale == lines[0].scale;
  }
  return adjoining;
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
BALORA_INLINE void write_columns(const float* from, int64_t width, const RankLine& line,
                                 int64_t col) {
  for (int64_t half = 0; half < 2; ++half) {
    Words words[16];
    std::memcpy(words, from + half * 256, sizeof words);
    transpose_words(words);
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t j = true_column(half, lane);
      if (j >= width) continue;
      float values[16];
      std::memcpy(values, &words[lane], sizeof values);
      float* const out = line.out + (col + j) * line.out_stride;
#pragma omp simd
      for (int64_t r = 0; r < 16; ++r) out[r] = line.scale * values[r];
    }
  }
}

void write_panel(const Contraction& c, std::span<const RankLine> p, int64_t panel) {
  const int64_t col = panel * 32, width = std::min<int64_t>(c.k - col, 32);
  const float* from = c.sums + panel * c.rank_tiles * kSumElements;
  for (int64_t tile = 0; tile < c.rank_tiles; ++tile, from += kSumElements) {
    std::span<const RankLine> lines = p.subspan(static_cast<size_t>(tile * kRankTile));
    lines = lines.first(std::min<size_t>(lines.size(), kRankTile));
    if (writes_adjoining(lines)) {
      at_level<&write_columns>(from, width, lines[0], col);
    } else {
      for (size_t r = 0; r < lines.size(); ++r) {
        write_line(from + static_cast<int64_t>(r) * 16, width, lines[r], col);
      }
    }
  }
}

// The lines of each rank tile, and once more for what rounding leaves of them.
std::vector<FactorRun> left_runs(std::span<const RankLine> p, int64_t halves) {
  std::vector<FactorLine> lines;
  for (size_t first = 0; first < p.size(); first += kRankTile) {
    for (int64_t half = 0; half < halves; ++half) {
      for (size_t r = first; r < first + kRankTile; ++r) {
        lines.push_back(r < p.size()
                            ? FactorLine{p[r].data, p[r].stride, 1, half ? Half::kLow : Half::kHigh}
                            : FactorLine{});
      }
    }
  }
  return runs_of(lines, static_cast<int64_t>(lines.size()));
}

}  // namespace

void contract_tiles(Context* ctx, const bf16* x, int64_t m, int64_t k, std::span<const RankLine> p,
                    Rounding rounding) {
  const auto rank = static_cast<int64_t>(p.size());
  const int64_t steps = round_up(m, kTileK) / kTileK, panels = round_up(k, 32) / 32;
  Contraction work = {.x = x,
                      .m = m,
                      .k = k,
                      .rank_tiles = round_up(rank, kRankTile) / kRankTile,
                      .halves = rounding == Rounding::kHalves ? 2 : 1};
  const std::vector<FactorRun> runs = left_runs(p, work.halves);
  const auto step_elements = static_cast<int64_t>(runs.size()) * kTileElements;
  const Scratch<bf16> packed(ctx, steps * step_elements);
  const Scratch<float> sums(ctx, panels * work.rank_tiles * kSumElements);
  bf16* const pt = packed.data();
  parallel_for(ctx, steps, 8, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      bf16* to = pt + s * step_elements;
      for (const FactorRun& run : runs) {
        pack_left_tile(run, s * kTileK, m, to);
        to += kTileElements;
      }
    }
  });
  work.pt = pt, work.sums = sums.data();
  parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
    tiles_core().contract(work, begin, end);
    for (int64_t panel = begin; panel < end; ++panel) write_panel(work, p, panel);
  });
}

}  // namespace balora
