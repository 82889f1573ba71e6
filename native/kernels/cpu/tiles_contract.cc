// contract_tiles (tiles.h): p^T x over the rows, the shape of every adapter gradient. p is
// transposed into bf16 pairs once; x is interleaved into tiles on the way, 128 rows x 32 columns at
// a time, straight from L2. Interleaving within 128-bit lanes leaves the columns of a pair of tiles
// shuffled; they are put right when the sums are written.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/tiles_target.h"
#include "tensor/errors.h"

namespace balora {

#ifdef BALORA_TILES
namespace {

constexpr int64_t kBlockSteps = 4;                     // 128 rows
constexpr int64_t kTileElements = kRankTile * kTileK;  // bf16 of an A tile

// p^T as A tiles: for each 32 rows of p and each 16 ranks, a tile of upper halves, then one of
// lower halves. This is one line of it: a rank's values in one step.
BALORA_SIMD void split_line(const RankLine& line, int64_t first, int64_t count, bf16* high,
                            bf16* low) {
  const float* from = line.data + first * line.stride;
  for (int64_t j = 0; j < kTileK; ++j) {
    const float value = j < count ? from[j * line.stride] : 0;
    high[j] = to_bf16(value);
    low[j] = to_bf16(value - to_float(high[j]));
  }
}

void pack_step(std::span<const RankLine> p, int64_t m, int64_t step, int64_t rank_tiles, bf16* to) {
  const int64_t first = step * kTileK, count = std::min(kTileK, m - first);
  for (int64_t r = 0; r < rank_tiles * kRankTile; ++r) {
    bf16* high = to + r / kRankTile * 2 * kTileElements + r % kRankTile * kTileK;
    if (r < static_cast<int64_t>(p.size())) {
      split_line(p[static_cast<size_t>(r)], first, count, high, high + kTileElements);
    } else {
      std::fill_n(high, kTileK, bf16{0});
      std::fill_n(high + kTileElements, kTileK, bf16{0});
    }
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

// The first `width` of 32 sums, from a row of two tiles, in the order of x's columns.
void unshuffle(const float* from, int64_t width, float* to) {
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t col = true_column(half, lane);
      if (col < width) to[col] = from[half * 256 + lane];
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
  AMX_TARGET static void open() {
    const TileConfig config;
    _tile_loadconfig(&config);
  }
  AMX_TARGET static void close() { _tile_release(); }

  // sums += (upper + lower tile of p^T) x (two tiles of x), over `count` steps.
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
      _tile_loadd(5, a + kTileElements, 64);
      _tile_loadd(6, b, 64);
      _tile_loadd(7, b + kTileElements, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(0, 5, 6);
      _tile_dpbf16ps(1, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
  }
};

struct Avx512Core {
  static constexpr int kRanks = 8;  // x 2 vectors of sums

  static void open() {}
  static void close() {}

  BF16_TARGET static void multiply(const bf16* a, int64_t a_step, const bf16* b, int64_t count,
                                   bool first, float* sums) {
    for (int64_t r = 0; r < kRankTile; r += kRanks) {
      multiply_ranks(a + r * kTileK, a_step, b, count, first, sums + r * 16);
    }
  }

 private:
  BF16_TARGET static __m512bh pair_at(const bf16* a) {
    int32_t bits;
    std::memcpy(&bits, a, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
  }

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
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
          for (int r = 0; r < kRanks; ++r) {
            const __m512bh value = pair_at(a + half * kTileElements + r * kTileK + 2 * pair);
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

template <typename Core>
AMX_TARGET void contract_panels(const Contraction& c, int64_t begin, int64_t end) {
  Core::open();
  alignas(64) bf16 wide[kBlockSteps * 2 * kTileElements];
  const int64_t steps = round_up(c.m, kTileK) / kTileK;
  const int64_t a_step = c.rank_tiles * 2 * kTileElements;
  for (int64_t first = 0; first < steps; first += kBlockSteps) {
    const int64_t count = std::min(kBlockSteps, steps - first);
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t s = 0; s < count; ++s) {
        interleave(c.x, c.m, c.k, (first + s) * kTileK, panel * 32, wide + s * 2 * kTileElements);
      }
      for (int64_t tile = 0; tile < c.rank_tiles; ++tile) {
        const bf16* a = c.pt + first * a_step + tile * 2 * kTileElements;
        float* sums = c.sums + (panel * c.rank_tiles + tile) * kSumElements;
        Core::multiply(a, a_step, wide, count, first == 0, sums);
      }
    }
  }
  Core::close();
}

}  // namespace

void contract_tiles(Context* ctx, const bf16* x, int64_t m, int64_t k, std::span<const RankLine> p,
                    float* out) {
  const auto rank = static_cast<int64_t>(p.size());
  const int64_t rank_tiles = round_up(rank, kRankTile) / kRankTile;
  const int64_t steps = round_up(m, kTileK) / kTileK, panels = round_up(k, 32) / 32;
  CpuState& state = CpuState::of(ctx);
  const int64_t step_elements = rank_tiles * 2 * kTileElements;
  auto* pt =
      static_cast<bf16*>(state.scratch(CpuState::kFirst, steps * step_elements * sizeof(bf16)));
  auto* sums = static_cast<float*>(
      state.scratch(CpuState::kSecond, panels * rank_tiles * kSumElements * sizeof(float)));
  parallel_for(ctx, steps, 8, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) pack_step(p, m, s, rank_tiles, pt + s * step_elements);
  });
  const Contraction work = {x, m, k, pt, rank_tiles, sums};
  const auto contract = tiles_use_amx() ? &contract_panels<AmxCore> : &contract_panels<Avx512Core>;
  parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
    contract(work, begin, end);
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t r = 0; r < rank; ++r) {
        const float* from =
            sums + (panel * rank_tiles + r / kRankTile) * kSumElements + r % kRankTile * 16;
        unshuffle(from, std::min<int64_t>(k - panel * 32, 32), out + r * k + panel * 32);
      }
    }
  });
}

#else

void contract_tiles(Context*, const bf16*, int64_t, int64_t, std::span<const RankLine>, float*) {
  throw UnsupportedError("this build has no tile kernels");
}

#endif

}  // namespace balora
