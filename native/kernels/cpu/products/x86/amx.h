// AMX's tile configuration, and its instructions where a build emulates them.
#pragma once
#include <cstdint>

#include "kernels/cpu/runtime/x86/targets.h"

namespace balora {

// The layout that LDTILECFG reads: palette 1, eight tiles of 16 rows x 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace balora
#ifdef BALORA_EMULATED_AMX
#include "kernels/cpu/products/x86/amx_emulated.h"
#endif

namespace balora {

// A static object, since _tile_loadconfig of GCC 12.2 declares only the first 8 bytes as read: the
// others of a local object would not be written.
AMX_TARGET inline void configure_tiles() {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
}

}  // namespace balora
