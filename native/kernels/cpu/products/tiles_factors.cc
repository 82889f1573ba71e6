// Operands made of lines of f32 (tiles.h): each value scaled, less where it began, rounded to the
// half that is wanted. Sixteen lines that lie side by side, as the ranks of a factor stored (n,R)
// do, are read across, a vector for each element.
#include <cstring>
#include <vector>

#include "kernels/cpu/products/tiles_job.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

using namespace tiles;

constexpr int64_t kRun = FactorRun::kLines;

// Whether line r is r elements behind the first one.
bool follows(const FactorLine& first, const FactorLine& line, int64_t r) {
  const auto beside = [r](const float* a, const float* b) { return a ? b == a + r : !b; };
  return beside(first.data, line.data) && beside(first.minus, line.minus) &&
         first.stride == line.stride && first.scale == line.scale && first.half == line.half;
}

// `count` values of a line's kind, each `stride` behind the one before.
template <int64_t kCount>
BALORA_INLINE void read_values(const FactorLine& line, int64_t at, int64_t stride, int64_t count,
                               float* to) {
  const float* const from = line.data + at;
  if (count == kCount && stride == 1) {
    std::memcpy(to, from, sizeof(float) * kCount);
  } else {
    for (int64_t j = 0; j < kCount; ++j) to[j] = j < count ? from[j * stride] : 0;
  }
  if (line.minus) {
    const float* const minus = line.minus + at;
    for (int64_t j = 0; j < count; ++j) to[j] -= minus[j * stride];
  }
#pragma omp simd
  for (int64_t j = 0; j < kCount; ++j) to[j] *= line.scale;
  if (line.half == Half::kHigh) return;
#pragma omp simd
  for (int64_t j = 0; j < kCount; ++j) to[j] -= to_float(to_bf16(to[j]));
}

// kElements of 16 lines from `first` of n on, zeros where they end: each element of all lines in a
// row, or each line; rows `step` apart.
template <int64_t kElements>
BALORA_INLINE void read_run(const FactorRun& run, bool across, int64_t first, int64_t n,
                            int64_t step, float* to) {
  const int64_t there = std::min(kElements, n - first);
  if (across) {
    const FactorLine& line = run.lines[0];
    for (int64_t e = 0; e < kElements; ++e) {
      if (line.data && e < there) {
        read_values<kRun>(line, (first + e) * line.stride, 1, kRun, to + e * step);
      } else {
        std::fill_n(to + e * step, kRun, 0.0f);
      }
    }
    return;
  }
  for (int64_t l = 0; l < kRun; ++l) {
    const FactorLine& line = run.lines[l];
    if (line.data && there > 0) {
      read_values<kElements>(line, first * line.stride, line.stride, there, to + l * step);
    } else {
      std::fill_n(to + l * step, kElements, 0.0f);
    }
  }
}

// A tile of 16 columns by 32 of k, whose values lie in rows of one k or of one column, as words of
// (k, k+1): a row of words for each pair of k, or for each column.
BALORA_INLINE void write_tile(const float* values, bool rows_of_k, bool words_of_pair, bf16* tile) {
  Words words[16];
  if (rows_of_k) {
    for (int64_t pair = 0; pair < 16; ++pair) {
      const float *even = values + 32 * pair, *odd = even + 16;
      uint32_t row[16];
#pragma omp simd
      for (int64_t j = 0; j < 16; ++j) {
        row[j] = static_cast<uint32_t>(to_bf16(even[j]).bits) |
                 static_cast<uint32_t>(to_bf16(odd[j]).bits) << 16;
      }
      std::memcpy(&words[pair], row, sizeof row);
    }
  } else {
    for (int64_t column = 0; column < 16; ++column) {
      uint16_t row[32];
#pragma omp simd
      for (int64_t i = 0; i < 32; ++i) row[i] = to_bf16(values[32 * column + i]).bits;
      std::memcpy(&words[column], row, sizeof row);
    }
  }
  if (rows_of_k != words_of_pair) transpose_words(words);
  std::memcpy(tile, words, sizeof words);
}

// A step of a panel whose 32 rows of k are lines.
BALORA_INLINE void pack_rows_loop(const FactorRun* runs, int64_t n, int64_t column, bf16* tiles) {
  const bool across = runs[0].adjoins && runs[1].adjoins;
  for (int64_t tile = 0; tile < 2; ++tile, column += 16) {
    alignas(64) float values[kRun * kTileK];
    read_run<16>(runs[0], across, column, n, across ? 32 : 16, values);
    read_run<16>(runs[1], across, column, n, across ? 32 : 16, values + (across ? 16 : 256));
    write_tile(values, !across, true, tiles + tile * kStepElements / 2);
  }
}

// A step of a tile whose 16 columns are lines.
BALORA_INLINE void pack_columns_loop(const FactorRun& run, int64_t first, int64_t k,
                                     bool words_of_pair, bf16* tile) {
  alignas(64) float values[kRun * kTileK];
  read_run<32>(run, run.adjoins, first, k, run.adjoins ? 16 : 32, values);
  write_tile(values, run.adjoins, words_of_pair, tile);
}

}  // namespace

std::vector<FactorRun> tiles::runs_of(std::span<const FactorLine> lines, int64_t count) {
  std::vector<FactorRun> runs(static_cast<size_t>((count + kRun - 1) / kRun));
  for (size_t i = 0; i < lines.size(); ++i) runs[i / kRun].lines[i % kRun] = lines[i];
  for (FactorRun& run : runs) {
    run.adjoins = true;
    for (int64_t r = 1; r < kRun; ++r) {
      run.adjoins = run.adjoins && follows(run.lines[0], run.lines[r], r);
    }
  }
  return runs;
}

void tiles::pack_left_tile(const FactorRun& run, int64_t first, int64_t k, bf16* tile) {
  at_level<&pack_columns_loop>(run, first, k, false, tile);
}

void pack_factor_rows(Context* ctx, std::span<const FactorLine> rows, int64_t n, bf16* tiles) {
  const int64_t k = round_up(static_cast<int64_t>(rows.size()), kTileK);
  const std::vector<FactorRun> runs = runs_of(rows, k);
  parallel_for(ctx, round_up(n, kTileN) / kTileN, 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t step = 0; step < k / kTileK; ++step) {
        at_level<&pack_rows_loop>(&runs[static_cast<size_t>(2 * step)], n, panel * kTileN,
                                  tiles + (panel * k + step * kTileK) * kTileN);
      }
    }
  });
}

void pack_factor_columns(Context* ctx, std::span<const FactorLine> columns, int64_t k,
                         bf16* tiles) {
  const std::vector<FactorRun> runs = runs_of(columns, static_cast<int64_t>(columns.size()));
  const int64_t steps = round_up(k, kTileK) / kTileK;
  parallel_for(ctx, static_cast<int64_t>(runs.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t step = 0; step < steps; ++step) {
        bf16* to = tiles + (tile / 2 * steps + step) * kStepElements + tile % 2 * kStepElements / 2;
        at_level<&pack_columns_loop>(runs[static_cast<size_t>(tile)], step * kTileK, k, true, to);
      }
    }
  });
}

}  // namespace balora
