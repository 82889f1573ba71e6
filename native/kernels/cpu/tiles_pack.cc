// The packed form of B operands (tiles.h): panels of 32 columns; in a panel, for each 32 of k, two
// tiles of 16 columns; in a tile, 16 rows of (k, k+1) pairs. Edges are padded with zeros.
#include <algorithm>
#include <array>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/tiles_target.h"
#include "kernels/cpu/transpose16.h"

namespace balora {
namespace {

constexpr int64_t kStepElements = kTileK * kTileN;  // one step of one panel

// (k, k+1) of one column.
constexpr uint32_t pair_of(bf16 first, bf16 second) {
  return static_cast<uint32_t>(first.bits) | static_cast<uint32_t>(second.bits) << 16;
}

BALORA_INLINE bf16 half_of(float value, Half half) {
  const bf16 high = to_bf16(value);
  return half == Half::kHigh ? high : to_bf16(value - to_float(high));
}

// Where the pair (k, k+1), k even, of column n stands, in pairs.
BALORA_INLINE int64_t pair_index(int64_t k, int64_t n, int64_t steps) {
  return ((n / kTileN * steps + k / kTileK) * kStepElements +
          n % kTileN / 16 * (kStepElements / 2)) /
             2 +
         k % kTileK / 2 * 16 + n % 16;
}

BALORA_SIMD void pack_row_pair(const FactorLine& a, const FactorLine& b, int64_t n, int64_t begin,
                               int64_t end, uint32_t* to) {
  for (int64_t j = begin; j < end; ++j) {
    const float first = a.data && j < n ? a.scale * a.data[j * a.stride] : 0;
    const float second = b.data && j < n ? b.scale * b.data[j * b.stride] : 0;
    to[j - begin] = pair_of(half_of(first, a.half), half_of(second, b.half));
  }
}

BALORA_SIMD void pack_column(const FactorLine& c, int64_t k, int64_t n, int64_t steps,
                             uint32_t* to) {
  const int64_t padded = steps * kTileK;
  for (int64_t i = 0; i < padded; i += 2) {
    const float first = c.data && i < k ? c.scale * c.data[i * c.stride] : 0;
    const float second = c.data && i + 1 < k ? c.scale * c.data[(i + 1) * c.stride] : 0;
    to[pair_index(i, n, steps)] = pair_of(half_of(first, c.half), half_of(second, c.half));
  }
}

// What pack_tiles reads: element (i,j) of B (k,n) at data[i * k_stride + j * n_stride].
struct Matrix16 {
  const bf16* data;
  int64_t k_stride, n_stride;

  Matrix16 at(int64_t i, int64_t j) const {
    return {data + i * k_stride + j * n_stride, k_stride, n_stride};
  }
};

// Asks for what is packed 32 rows or columns from here: as many streams of a weight that no cache
// holds, more than the processor foresees by itself. Past the end of B it asks for nothing of use.
BALORA_INLINE void prefetch_lines(const bf16* from, int64_t stride) {
  for (int64_t i = 0; i < 32; ++i) __builtin_prefetch(from + i * stride);
}

#ifdef BALORA_TILES
// 32 x 32 elements whose rows of B are contiguous: each pair of rows is interleaved.
BF16_TARGET void pack_rows_block(const Matrix16& b, uint32_t* to) {
  prefetch_lines(b.at(kTileK, 0).data, b.k_stride);
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint16_t, 64> order{};
    for (uint16_t lane = 0; lane < 32; ++lane) {
      order[2 * lane] = lane, order[2 * lane + 1] = static_cast<uint16_t>(lane + 32);
    }
    return order;
  }();
  const __m512i left = _mm512_load_si512(kOrder.data()), right = _mm512_load_si512(&kOrder[32]);
  for (int64_t pair = 0; pair < kTileK / 2; ++pair) {
    const bf16* from = b.data + 2 * pair * b.k_stride;
    const __m512i first = _mm512_loadu_si512(from);
    const __m512i second = _mm512_loadu_si512(from + b.k_stride);
    _mm512_store_si512(to + pair * 16, _mm512_permutex2var_epi16(first, left, second));
    _mm512_store_si512(to + 256 + pair * 16, _mm512_permutex2var_epi16(first, right, second));
  }
}
#else
void pack_rows_block(const Matrix16& b, uint32_t* to) {
  for (int64_t i = 0; i < kTileK; i += 2) {
    for (int64_t j = 0; j < kTileN; ++j) {
      const bf16* at = b.data + i * b.k_stride + j;
      to[pair_index(i, j, 1)] = pair_of(at[0], at[b.k_stride]);
    }
  }
}
#endif

// The same where its columns are: their pairs are words already.
void pack_columns_block(const Matrix16& b, uint32_t* to) {
  prefetch_lines(b.at(0, kTileN).data, b.n_stride);
  for (int64_t tile = 0; tile < 2; ++tile) {
    const auto* from = reinterpret_cast<const uint32_t*>(b.data + tile * 16 * b.n_stride);
    transpose16(from, b.n_stride / 2, to + tile * 256, 16);
  }
}

// A block at the edge, or of any strides: gathered with zeros around.
void pack_edge_block(const Matrix16& b, int64_t k, int64_t n, uint32_t* to) {
  alignas(64) bf16 block[kStepElements] = {};
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < n; ++j) block[i * kTileN + j] = *b.at(i, j).data;
  }
  pack_rows_block({block, kTileN, 1}, to);
}

}  // namespace

void pack_tiles(Context* ctx, const bf16* b, int64_t k_stride, int64_t n_stride, int64_t k,
                int64_t n, bf16* tiles) {
  const int64_t steps = round_up(k, kTileK) / kTileK, panels = round_up(n, kTileN) / kTileN;
  const Matrix16 matrix = {b, k_stride, n_stride};
  const bool words = k_stride == 1 && n_stride % 2 == 0 && reinterpret_cast<uintptr_t>(b) % 4 == 0;
  parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
    // In the order of memory: along a row of B, or a column.
    const int64_t width = end - begin;
    for (int64_t block = 0; block < width * steps; ++block) {
      const int64_t panel = begin + (n_stride == 1 ? block % width : block / steps);
      const int64_t step = n_stride == 1 ? block / width : block % steps;
      const Matrix16 from = matrix.at(step * kTileK, panel * kTileN);
      auto* to = reinterpret_cast<uint32_t*>(tiles + (panel * steps + step) * kStepElements);
      const int64_t rows = std::min(kTileK, k - step * kTileK);
      const int64_t cols = std::min(kTileN, n - panel * kTileN);
      if (rows < kTileK || cols < kTileN || !(words || n_stride == 1)) {
        pack_edge_block(from, rows, cols, to);
      } else if (n_stride == 1) {
        pack_rows_block(from, to);
      } else {
        pack_columns_block(from, to);
      }
    }
  });
}

void pack_factor_rows(Context* ctx, std::span<const FactorLine> rows, int64_t n, bf16* tiles) {
  const auto k = static_cast<int64_t>(rows.size());
  const int64_t steps = round_up(k, kTileK) / kTileK, panels = round_up(n, kTileN) / kTileN;
  auto* to = reinterpret_cast<uint32_t*>(tiles);
  parallel_for(ctx, panels * 2, 4, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t i = 0; i < steps * kTileK; i += 2) {
        const FactorLine a = i < k ? rows[static_cast<size_t>(i)] : FactorLine{};
        const FactorLine b = i + 1 < k ? rows[static_cast<size_t>(i + 1)] : FactorLine{};
        pack_row_pair(a, b, n, tile * 16, tile * 16 + 16, to + pair_index(i, tile * 16, steps));
      }
    }
  });
}

void pack_factor_columns(Context* ctx, std::span<const FactorLine> columns, int64_t k,
                         bf16* tiles) {
  const auto n = static_cast<int64_t>(columns.size());
  const int64_t steps = round_up(k, kTileK) / kTileK;
  parallel_for(ctx, round_up(n, kTileN), 8, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const FactorLine column = j < n ? columns[static_cast<size_t>(j)] : FactorLine{};
      pack_column(column, k, j, steps, reinterpret_cast<uint32_t*>(tiles));
    }
  });
}

}  // namespace balora
