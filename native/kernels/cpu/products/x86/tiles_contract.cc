// Panels of contract_tiles. x is interleaved into tiles on the way, 128 rows x 32 columns at a
// time, straight from L2.
#include <algorithm>

#include "kernels/cpu/products/tiles_job.h"
#include "kernels/cpu/products/x86/amx.h"

namespace balora::x86 {
namespace {

using namespace tiles;

constexpr int64_t kBlockSteps = 4;  // 128 rows

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

template <typename Core>
void contract_with(const Contraction& c, int64_t begin, int64_t end) {
  const auto contract = c.halves == 2 ? &contract_panels<Core, 2> : &contract_panels<Core, 1>;
  contract(c, begin, end);
}

}  // namespace

void contract_amx(const Contraction& c, int64_t begin, int64_t end) {
  contract_with<AmxCore>(c, begin, end);
}
void contract_avx512(const Contraction& c, int64_t begin, int64_t end) {
  contract_with<Avx512Core>(c, begin, end);
}

}  // namespace balora::x86
