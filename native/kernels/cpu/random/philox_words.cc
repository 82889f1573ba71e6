#include "kernels/cpu/random/philox_words.h"

#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/shared/philox.h"

namespace balora {
namespace {

// The lanes of a vector are blocks; the round loop is unrolled before the vectoriser sees it, so
// that counters stay in registers.
BALORA_INLINE void draw_any_loop(uint64_t seed, uint64_t stream, uint64_t first_block, int blocks,
                                 uint32_t* words) {
  uint32_t drawn[4][kWordBlocks];
#pragma omp simd
  for (int b = 0; b < blocks; ++b) {
    const uint64_t index = first_block + static_cast<uint64_t>(b);
    uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
    uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
      philox_round(c0, c1, c2, c3, k0, k1);
      k0 += kPhiloxKeyStep0;
      k1 += kPhiloxKeyStep1;
    }
    drawn[0][b] = c0;
    drawn[1][b] = c1;
    drawn[2][b] = c2;
    drawn[3][b] = c3;
  }
  for (int b = 0; b < blocks; ++b) {
    for (int j = 0; j < 4; ++j) words[4 * b + j] = drawn[j][b];
  }
}
void draw_any(uint64_t seed, uint64_t stream, uint64_t first_block, int blocks, uint32_t* words) {
  at_level<&draw_any_loop>(seed, stream, first_block, blocks, words);
}

constexpr Core<DrawWords*> kDraws[] = {
    BALORA_X86("avx512", platform::kAvx512, x86::draw_words),
    {"any", 0, draw_any},
};

}  // namespace

BALORA_IMPLEMENTATIONS(random_words, kDraws)

void draw_words(uint64_t seed, uint64_t stream, uint64_t first_block, int blocks, uint32_t* words) {
  static const Core<DrawWords*>& core = first_core(kDraws);
  core.run(seed, stream, first_block, blocks, words);
}

}  // namespace balora
