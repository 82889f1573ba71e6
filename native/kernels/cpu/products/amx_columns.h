// Products of packed tiles on AMX, 32 columns at a time: the right operand stays in tiles 4 to 7 of
// the processor while rows of A go by in 2 and 3, sixteen at a time; their sums are in 0 and 1. It
// takes half of the loads of blocks of 32 x 32.
#pragma once
#include <cstdint>

#include "kernels/cpu/products/tiles_target.h"

#ifdef BALORA_TILES
namespace balora::amx {

constexpr int64_t kColumns = 32, kGroup = 16;
constexpr int64_t kStep = 32, kMostSteps = 2;  // of what is summed over

// 32 columns of A; b (rows,32) in pair order (tile_gemm.h); c (rows,32). ld: elements between rows,
// which for b are counted as if it were not in pairs.
struct Left {
  const bf16* data;
  int64_t ld;
};
struct Right {
  const bf16* data;
  int64_t ld;
};
struct Sums {
  float* data;
  int64_t ld;
};

// c (m,32) = a b, or += where it `accumulates`, over kSteps steps: one Left each. m is a multiple
// of 16. after_group() runs after each 16 rows, beside their products.
template <int kSteps, typename AfterGroup>
AMX_TARGET BALORA_INLINE void multiply_columns(const Left* a, int64_t m, Right b, Sums c,
                                               bool accumulates, const AfterGroup& after_group) {
  static_assert(kSteps == 1 || kSteps == kMostSteps);
  const int64_t b_bytes = b.ld * 4, c_bytes = c.ld * 4;
  asm volatile("" ::
                   : "memory");  // the compiler does not know what memory the tile instructions use
  _tile_loadd(4, b.data, b_bytes);
  _tile_loadd(5, b.data + 32, b_bytes);
  if constexpr (kSteps == 2) {
    _tile_loadd(6, b.data + kStep * b.ld, b_bytes);
    _tile_loadd(7, b.data + kStep * b.ld + 32, b_bytes);
  }
  for (int64_t row = 0; row < m; row += kGroup) {
    float* const sums = c.data + row * c.ld;
    if (accumulates) {
      _tile_loadd(0, sums, c_bytes);
      _tile_loadd(1, sums + 16, c_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    _tile_loadd(2, a[0].data + row * a[0].ld, a[0].ld * 2);
    _tile_dpbf16ps(0, 2, 4);
    _tile_dpbf16ps(1, 2, 5);
    if constexpr (kSteps == 2) {
      _tile_loadd(3, a[1].data + row * a[1].ld, a[1].ld * 2);
      _tile_dpbf16ps(0, 3, 6);
      _tile_dpbf16ps(1, 3, 7);
    }
    _tile_stored(0, sums, c_bytes);
    _tile_stored(1, sums + 16, c_bytes);
    after_group();
  }
  asm volatile("" ::: "memory");
}
// The same of one step or two.
template <typename AfterGroup>
AMX_TARGET BALORA_INLINE void multiply_columns(int64_t steps, const Left* a, int64_t m, Right b,
                                               Sums c, bool accumulates,
                                               const AfterGroup& after_group) {
  if (steps == kMostSteps) {
    multiply_columns<kMostSteps>(a, m, b, c, accumulates, after_group);
  } else {
    multiply_columns<1>(a, m, b, c, accumulates, after_group);
  }
}

}  // namespace balora::amx
#endif
