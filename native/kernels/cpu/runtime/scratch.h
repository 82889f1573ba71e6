// Scratch memory of the CPU's kernels that outlives them, so that each step finds its pages again.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernel_table.h"
#include "platform/platform.h"

namespace balora {

// Blocks that grow and are not given back, each lent to one holder at a time. Used by the engine
// thread only.
class ScratchPool {
 public:
  struct Block {
    platform::AlignedMemory data;
    uint64_t bytes = 0;
    bool lent = false;
  };

  ScratchPool() = default;
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;

  // At least so many bytes, aligned to 64, of any content. @throws std::bad_alloc
  Block& lend(uint64_t bytes);
  void poison() { poisoned_ = true; }  // see cpu_state.h

  // The pool of a stream.
  static ScratchPool& of(Context* ctx);

 private:
  Block& choose(uint64_t bytes);

  std::vector<std::unique_ptr<Block>> blocks_;
  bool poisoned_ = false;
};

// `count` elements for as long as the object lives; those of two live objects never overlap,
// whoever holds them. Their content is what any kernel left there: NaNs, as well. Null for none.
template <typename T>
class Scratch {
 public:
  Scratch(Context* ctx, int64_t count)
      : block_(count > 0 ? &ScratchPool::of(ctx).lend(static_cast<uint64_t>(count) * sizeof(T))
                         : nullptr) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (block_) block_->lent = false;
  }

  T* data() const { return block_ ? static_cast<T*>(block_->data.get()) : nullptr; }

 private:
  ScratchPool::Block* block_;
};

}  // namespace balora
