// B operands made of f32 factors (tiles.h): each value scaled, less where it began, rounded to the
// half that is wanted. Sixteen lines that lie side by side, as the ranks of a factor stored (n,R)
// do, are read across, a vector for each element; others along, with a gather
// where they are strided.
#include <cstring>
#include <vector>

#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/products/tiles_words.h"
#include "kernels/cpu/runtime/parallel.h"
#include "tensor/errors.h"

namespace balora {

#ifdef BALORA_TILES
namespace {

using namespace tiles;

constexpr int64_t kRun = 16;

// The lines of one tile or of half a step; those past the last are zeros.
struct Run {
  FactorLine lines[kRun];
  bool adjoins = false;

  Run(std::span<const FactorLine> all, int64_t first) {
    const auto count = static_cast<int64_t>(all.size());
    for (int64_t r = 0; r < kRun && first + r < count; ++r) {
      lines[r] = all[static_cast<size_t>(first + r)];
    }
    adjoins = true;
    for (int64_t r = 1; r < kRun; ++r) adjoins = adjoins && follows(lines[0], lines[r], r);
  }

 private:
  static bool follows(const FactorLine& first, const FactorLine& line, int64_t r) {
    const auto beside = [r](const float* a, const float* b) { return a ? b == a + r : !b; };
    return beside(first.data, line.data) && beside(first.minus, line.minus) &&
           first.stride == line.stride && first.scale == line.scale && first.half == line.half;
  }
};

BF16_TARGET BALORA_INLINE __m512 finished(const FactorLine& line, __m512 value, __m512 minus) {
  value = _mm512_mul_ps(_mm512_sub_ps(value, minus), _mm512_set1_ps(line.scale));
  return line.half == Half::kHigh ? value : lanes::rounding_left(value);
}

// Element i of 16 lines that adjoin.
BF16_TARGET BALORA_INLINE __m512 across(const Run& run, int64_t i, int64_t n) {
  const FactorLine& line = run.lines[0];
  if (!line.data || i >= n) return _mm512_setzero_ps();
  const int64_t at = i * line.stride;
  const __m512 minus = line.minus ? _mm512_loadu_ps(line.minus + at) : _mm512_setzero_ps();
  return finished(line, _mm512_loadu_ps(line.data + at), minus);
}

BF16_TARGET BALORA_INLINE __m512 gathered(const float* from, int64_t stride, __mmask16 there) {
  if (stride == 1) return _mm512_maskz_loadu_ps(there, from);
  alignas(64) float values[16] = {};
  for (int64_t l = 0; l < 16; ++l) {
    if (there >> l & 1) values[l] = from[l * stride];
  }
  return _mm512_load_ps(values);
}

// Elements i .. i + 15 of a line of n.
BF16_TARGET BALORA_INLINE __m512 along(const FactorLine& line, int64_t i, int64_t n) {
  const __mmask16 there = lanes::first16(line.data ? n - i : 0);
  if (there == 0) return _mm512_setzero_ps();
  const int64_t at = i * line.stride;
  const __m512 minus =
      line.minus ? gathered(line.minus + at, line.stride, there) : _mm512_setzero_ps();
  return finished(line, gathered(line.data + at, line.stride, there), minus);
}

// A step of a panel whose 32 rows of k are lines.
BF16_TARGET void pack_rows_step(const Run* runs, int64_t n, int64_t column, bf16* tiles) {
  for (int64_t tile = 0; tile < 2; ++tile, column += 16) {
    Words words[16];
    if (runs[0].adjoins && runs[1].adjoins) {
#pragma GCC unroll 16
      for (int64_t c = 0; c < 16; ++c) {
        words[c] =
            (Words)lanes::rounded(across(runs[0], column + c, n), across(runs[1], column + c, n));
      }
      transpose_words(words);
    } else {
      for (int64_t pair = 0; pair < 16; ++pair) {
        const FactorLine* lines = runs[pair / 8].lines + pair % 8 * 2;
        words[pair] = word_pairs(along(lines[0], column, n), along(lines[1], column, n));
      }
    }
    std::memcpy(tiles + tile * kStepElements / 2, words, sizeof words);
  }
}

// A step of a tile whose 16 columns are lines.
BF16_TARGET void pack_columns_step(const Run& run, int64_t k, int64_t first, bf16* tile) {
  Words words[16];
  if (run.adjoins) {
#pragma GCC unroll 16
    for (int64_t pair = 0; pair < 16; ++pair) {
      const int64_t i = first + 2 * pair;
      words[pair] = word_pairs(across(run, i, k), across(run, i + 1, k));
    }
  } else {
    for (int64_t c = 0; c < 16; ++c) {
      words[c] =
          (Words)lanes::rounded(along(run.lines[c], first, k), along(run.lines[c], first + 16, k));
    }
    transpose_words(words);
  }
  std::memcpy(tile, words, sizeof words);
}

std::vector<Run> runs_of(std::span<const FactorLine> lines, int64_t count) {
  std::vector<Run> runs;
  for (int64_t first = 0; first < count; first += kRun) runs.emplace_back(lines, first);
  return runs;
}

}  // namespace

void pack_factor_rows(Context* ctx, std::span<const FactorLine> rows, int64_t n, bf16* tiles) {
  const int64_t k = round_up(static_cast<int64_t>(rows.size()), kTileK);
  const std::vector<Run> runs = runs_of(rows, k);
  parallel_for(ctx, round_up(n, kTileN) / kTileN, 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t step = 0; step < k / kTileK; ++step) {
        pack_rows_step(&runs[static_cast<size_t>(2 * step)], n, panel * kTileN,
                       tiles + (panel * k + step * kTileK) * kTileN);
      }
    }
  });
}

void pack_factor_columns(Context* ctx, std::span<const FactorLine> columns, int64_t k,
                         bf16* tiles) {
  const std::vector<Run> runs = runs_of(columns, static_cast<int64_t>(columns.size()));
  const int64_t steps = round_up(k, kTileK) / kTileK;
  parallel_for(ctx, static_cast<int64_t>(runs.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t step = 0; step < steps; ++step) {
        bf16* to = tiles + (tile / 2 * steps + step) * kStepElements + tile % 2 * kStepElements / 2;
        pack_columns_step(runs[static_cast<size_t>(tile)], k, step * kTileK, to);
      }
    }
  });
}

#else

void pack_factor_rows(Context*, std::span<const FactorLine>, int64_t, bf16*) {
  throw UnsupportedError("this build has no tile kernels");
}
void pack_factor_columns(Context*, std::span<const FactorLine>, int64_t, bf16*) {
  throw UnsupportedError("this build has no tile kernels");
}

#endif

}  // namespace balora
