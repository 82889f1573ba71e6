// AMX's instructions as plain loops in the place of their intrinsics, in a build made for tests
// (-DBALORA_EMULATED_AMX=ON): the kernels for AMX then run on any CPU with AVX512-BF16, where
// BALORA_EMULATE_AMX=1 asks for it, and a sanitizer sees what their tiles read and write. Included
// by amx.h alone.
#pragma once
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace balora::amx_emulated {

struct Registers {
  bool configured = false;
  TileConfig config;
  uint8_t tiles[8][16][64];

  // A tile that was not configured raises an exception on the CPU, too.
  void check(int tile) const {
    if (configured && config.rows[tile] > 0) return;
    std::fprintf(stderr, "AMX: tile %d is used without a configuration\n", tile);
    std::abort();
  }
};

inline Registers& registers() {
  thread_local Registers all;
  return all;
}

inline void configure(const void* config) {
  Registers& r = registers();
  std::memcpy(&r.config, config, sizeof r.config);
  std::memset(r.tiles, 0, sizeof r.tiles);
  r.configured = r.config.palette == 1;
}

inline void release() {
  registers().configured = false;
}

inline void zero(int tile) {
  registers().check(tile);
  std::memset(registers().tiles[tile], 0, sizeof registers().tiles[tile]);
}

inline void load(int tile, const void* base, int64_t stride) {
  Registers& r = registers();
  r.check(tile);
  std::memset(r.tiles[tile], 0, sizeof r.tiles[tile]);
  for (int row = 0; row < r.config.rows[tile]; ++row) {
    const char* from = static_cast<const char*>(base) + row * stride;
    std::memcpy(r.tiles[tile][row], from, r.config.bytes[tile]);
  }
}

inline void store(int tile, void* base, int64_t stride) {
  Registers& r = registers();
  r.check(tile);
  for (int row = 0; row < r.config.rows[tile]; ++row) {
    char* to = static_cast<char*>(base) + row * stride;
    std::memcpy(to, r.tiles[tile][row], r.config.bytes[tile]);
  }
}

// TDPBF16PS: c (rows,n) += a (rows,2k) b (k,n,2), even and odd k in sums of their own.
BF16_TARGET inline void multiply(int c, int a, int b) {
  Registers& r = registers();
  r.check(c), r.check(a), r.check(b);
  const int steps = r.config.bytes[a] / 4;
  const auto half = [](uint32_t bits) { return std::bit_cast<float>(bits); };
  for (int row = 0; row < r.config.rows[c]; ++row) {
    float even[16] = {}, odd[16] = {}, sums[16];
    for (int k = 0; k < steps; ++k) {
      uint32_t left, right[16];
      std::memcpy(&left, r.tiles[a][row] + 4 * k, sizeof left);
      std::memcpy(right, r.tiles[b][k], sizeof right);
#pragma omp simd
      for (int n = 0; n < 16; ++n) {
        even[n] += half(left << 16) * half(right[n] << 16);
        odd[n] += half(left & 0xffff0000u) * half(right[n] & 0xffff0000u);
      }
    }
    std::memcpy(sums, r.tiles[c][row], sizeof sums);
    for (int n = 0; n < r.config.bytes[c] / 4; ++n) sums[n] += even[n] + odd[n];
    std::memcpy(r.tiles[c][row], sums, sizeof sums);
  }
}

}  // namespace balora::amx_emulated

#undef _tile_dpbf16ps
#undef _tile_loadd
#undef _tile_stored
#undef _tile_stream_loadd
#undef _tile_zero
#define _tile_loadconfig(config) balora::amx_emulated::configure(config)
#define _tile_release() balora::amx_emulated::release()
#define _tile_zero(tile) balora::amx_emulated::zero(tile)
#define _tile_loadd(tile, base, stride) balora::amx_emulated::load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) balora::amx_emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) balora::amx_emulated::store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) balora::amx_emulated::multiply(c, a, b)
