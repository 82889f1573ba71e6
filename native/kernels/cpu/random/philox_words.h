// Words of a Philox stream (philox.h), many at a time.
#pragma once
#include <cstdint>

namespace balora {

constexpr int kWordBlocks = 64;  // blocks of four words that are drawn at once

// Words from 4 * first_block on, of `blocks` blocks. `words` has room for those of kWordBlocks and
// is aligned to 64 bytes.
using DrawWords = void(uint64_t seed, uint64_t stream, uint64_t first_block, int blocks,
                       uint32_t* words);
DrawWords draw_words;

namespace x86 {
DrawWords draw_words;
}

}  // namespace balora
