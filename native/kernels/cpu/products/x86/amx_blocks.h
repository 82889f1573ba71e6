// Blocks of 32 x 32 sums on AMX, four tiles of the processor, with what is added to them.
#pragma once
#include <cstdint>

#include "kernels/cpu/products/x86/amx.h"

namespace balora::amx {

constexpr int64_t kSide = 32;  // of a block, and what a step sums over

// Rows of a left operand, and of a right one in pair order (tile_gemm.h). ld: elements between
// rows, which for the right one are counted as if it were not in pairs.
struct Left {
  const bf16* data;
  int64_t ld;
};
struct Right {
  const bf16* data;
  int64_t ld;
};

// A block in tiles 0 to 3: it begins with what is at c, where that is not null, or with zeros, gets
// a (32,32) b (32,32) from each step, and goes to c. The compiler does not know what memory the
// tile instructions use.
AMX_TARGET BALORA_INLINE void begin_block(const float* c, int64_t ld) {
  asm volatile("" ::: "memory");
  if (!c) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
  _tile_loadd(0, c, ld * 4);
  _tile_loadd(1, c + 16, ld * 4);
  _tile_loadd(2, c + 16 * ld, ld * 4);
  _tile_loadd(3, c + 16 * ld + 16, ld * 4);
}
AMX_TARGET BALORA_INLINE void add_step(Left a, Right b) {
  _tile_loadd(4, a.data, a.ld * 2);
  _tile_loadd(6, b.data, b.ld * 4);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b.data + 32, b.ld * 4);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, a.data + 16 * a.ld, a.ld * 2);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}
AMX_TARGET BALORA_INLINE void end_block(float* c, int64_t ld) {
  _tile_stored(0, c, ld * 4);
  _tile_stored(1, c + 16, ld * 4);
  _tile_stored(2, c + 16 * ld, ld * 4);
  _tile_stored(3, c + 16 * ld + 16, ld * 4);
  asm volatile("" ::: "memory");
}

}  // namespace balora::amx
