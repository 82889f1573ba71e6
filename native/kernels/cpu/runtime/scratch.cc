#include "kernels/cpu/runtime/scratch.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/runtime/stream_state.h"

namespace balora {
namespace {

// A block may be so many times what is asked for, or of kSmall, lest a small request take the block
// of a large one that follows.
constexpr uint64_t kMostTimes = 4;
constexpr uint64_t kSmall = uint64_t{256} << 10;

}  // namespace

// The smallest free block that is large enough; else the largest of those that are not, which
// grows; else a new one.
ScratchPool::Block& ScratchPool::choose(uint64_t bytes) {
  Block* fitting = nullptr;
  Block* growing = nullptr;
  for (const auto& block : blocks_) {
    if (block->lent) continue;
    if (block->bytes < bytes) {
      if (!growing || block->bytes > growing->bytes) growing = block.get();
    } else if (block->bytes <= std::max(kMostTimes * bytes, kSmall)) {
      if (!fitting || block->bytes < fitting->bytes) fitting = block.get();
    }
  }
  if (fitting) return *fitting;
  return growing ? *growing : *blocks_.emplace_back(std::make_unique<Block>());
}

ScratchPool::Block& ScratchPool::lend(uint64_t bytes) {
  Block& block = choose(bytes);
  if (block.bytes < bytes) {
    block = {};
    const uint64_t rounded = (bytes + 4095) / 4096 * 4096;
    block.data = platform::allocate_aligned(rounded);
    block.bytes = rounded;
  }
  block.lent = true;
  if (poisoned_) std::memset(block.data.get(), 0xff, bytes);
  return block;
}

ScratchPool& ScratchPool::of(Context* ctx) {
  return StreamState::of(ctx)->scratch;
}

}  // namespace balora
