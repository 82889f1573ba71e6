#include "engine/staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/kernel_failure.h"

namespace balora {
namespace {

constexpr int64_t kLeastBlock = 4096;

int64_t block_size(int64_t bytes) {
  int64_t size = kLeastBlock;
  while (size < bytes) size *= 2;
  return size;
}

void wait_for(const KernelTable& kernels, void* mark) {
  char error[512] = "";
  if (kernels.await_mark(mark, error, sizeof error) == 0) return;
  error[sizeof error - 1] = '\0';
  throw kernel_failure(error, "the device failed");
}

void check_copy(const Context* ctx, int32_t status) {
  if (status != 0) throw kernel_failure(ctx->error, "a copy failed");
}

}  // namespace

// ---- Blocks -------------------------------------------------------------------------------------

PinnedBlock::~PinnedBlock() {
  pool_->give({data_, size_, mark_, std::move(marked_by_)});
}

const KernelTable* PinnedBlock::kernels() const {
  return pool_->kernels_;
}

int32_t PinnedBlock::set_mark(Context* ctx, const std::shared_ptr<void>& device_state) {
  const KernelTable& kernels = *pool_->kernels_;
  if (mark_) kernels.unmark(std::exchange(mark_, nullptr));
  marked_by_ = device_state;
  return kernels.mark(ctx, &mark_);
}

int32_t PinnedBlock::copy_in(Context* ctx, void* device, int64_t bytes,
                             const std::shared_ptr<void>& device_state) {
  const auto size = static_cast<uint64_t>(bytes);
  if (const int32_t status = pool_->kernels_->copy_in(ctx, device, data_, size)) return status;
  return set_mark(ctx, device_state);
}

int32_t PinnedBlock::copy_out(Context* ctx, const void* device, int64_t bytes,
                              const std::shared_ptr<void>& device_state) {
  const auto size = static_cast<uint64_t>(bytes);
  if (const int32_t status = pool_->kernels_->copy_out(ctx, data_, device, size)) return status;
  return set_mark(ctx, device_state);
}

void PinnedBlock::await() {
  if (mark_) wait_for(*pool_->kernels_, mark_);
}

// ---- The pool -----------------------------------------------------------------------------------

PinnedPool::~PinnedPool() {
  for (const Pending& block : pending_) {
    char ignored[512];
    kernels_->await_mark(block.mark, ignored, sizeof ignored);
    kernels_->unmark(block.mark);
    kernels_->unpin(device_state_.get(), block.data);
  }
  for (const auto& [size, data] : free_) kernels_->unpin(device_state_.get(), data);
}

std::unique_ptr<PinnedBlock> PinnedPool::take(int64_t bytes) {
  if (!kernels_->pin || bytes > kLargestBytes) return nullptr;
  const int64_t size = block_size(bytes);
  std::lock_guard lock(mutex_);
  collect();
  const auto found = free_.find(size);
  void* data = nullptr;
  if (found != free_.end()) {
    data = found->second;
    free_.erase(found);
  } else {
    if (!make_room(size)) return nullptr;
    data = kernels_->pin(device_state_.get(), static_cast<uint64_t>(size));
    if (!data) return nullptr;
    held_ += size;
  }
  return std::make_unique<PinnedBlock>(shared_from_this(), data, size);
}

int64_t PinnedPool::held_bytes() const {
  std::lock_guard lock(mutex_);
  return held_;
}

void PinnedPool::give(Pending block) {
  std::lock_guard lock(mutex_);
  if (block.mark) {
    pending_.push_back(std::move(block));
  } else {
    free_.emplace(block.size, block.data);
  }
}

// Copies of several streams end in any order.
void PinnedPool::collect() {
  for (auto block = pending_.begin(); block != pending_.end();) {
    if (!kernels_->reached(block->mark)) {
      ++block;
      continue;
    }
    kernels_->unmark(block->mark);
    free_.emplace(block->size, block->data);
    block = pending_.erase(block);
  }
}

// Gives free blocks of other sizes back, the largest first.
bool PinnedPool::make_room(int64_t size) {
  while (held_ + size > kMostBytes && !free_.empty()) {
    const auto largest = std::prev(free_.end());
    held_ -= largest->first;
    kernels_->unpin(device_state_.get(), largest->second);
    free_.erase(largest);
  }
  return held_ + size <= kMostBytes;
}

// ---- The ring -----------------------------------------------------------------------------------

StagingRing::~StagingRing() {
  for (Chunk& chunk : chunks_) {
    if (chunk.mark) {
      char ignored[512];
      kernels_->await_mark(chunk.mark, ignored, sizeof ignored);
      kernels_->unmark(chunk.mark);
    }
    if (chunk.data) kernels_->unpin(device_state_.get(), chunk.data);
  }
}

StagingRing::Chunk& StagingRing::at(int64_t turn) {
  Chunk& chunk = chunks_[static_cast<size_t>(turn) % kChunks];
  if (!chunk.data) chunk.data = kernels_->pin(device_state_.get(), kChunkBytes);
  if (!chunk.data) {
    throw OutOfMemoryError(concat(kChunkBytes, " bytes of pinned memory wanted"));
  }
  return chunk;
}

void StagingRing::settle(Chunk& chunk) {
  if (!chunk.mark) return;
  void* mark = std::exchange(chunk.mark, nullptr);
  try {
    wait_for(*kernels_, mark);
  } catch (...) {
    kernels_->unmark(mark);
    throw;
  }
  kernels_->unmark(mark);
}

void StagingRing::mark(Context* ctx, Chunk& chunk) {
  check_copy(ctx, kernels_->mark(ctx, &chunk.mark));
}

void* StagingRing::fill() {
  Chunk& chunk = at(turn_);
  settle(chunk);
  return chunk.data;
}

void StagingRing::send_filled(Context* ctx, void* device, int64_t bytes) {
  Chunk& chunk = at(turn_++);
  check_copy(ctx, kernels_->copy_in(ctx, device, chunk.data, static_cast<uint64_t>(bytes)));
  mark(ctx, chunk);
}

void StagingRing::send(Context* ctx, void* device, const void* host, int64_t bytes) {
  if (!kernels_->pin) {
    return check_copy(ctx, kernels_->upload(ctx, device, host, static_cast<uint64_t>(bytes)));
  }
  for (int64_t at = 0; at < bytes; at += kChunkBytes) {
    const int64_t size = std::min(kChunkBytes, bytes - at);
    std::memcpy(fill(), static_cast<const char*>(host) + at, static_cast<size_t>(size));
    send_filled(ctx, static_cast<char*>(device) + at, size);
  }
}

// Copies chunk by chunk: as many as the ring has are under way while the oldest is copied
// out of it.
void StagingRing::fetch(Context* ctx, void* host, const void* device, int64_t bytes) {
  if (!kernels_->pin) {
    return check_copy(ctx, kernels_->download(ctx, host, device, static_cast<uint64_t>(bytes)));
  }
  const int64_t count = (bytes + kChunkBytes - 1) / kChunkBytes;
  const auto size_of = [bytes](int64_t i) {
    return std::min(kChunkBytes, bytes - i * kChunkBytes);
  };
  const int64_t first = turn_, ahead = static_cast<int64_t>(kChunks);
  turn_ += count;
  for (int64_t i = 0; i < count + ahead; ++i) {
    const int64_t done = i - ahead;
    if (done >= 0 && done < count) {
      Chunk& chunk = at(first + done);
      settle(chunk);
      std::memcpy(static_cast<char*>(host) + done * kChunkBytes, chunk.data,
                  static_cast<size_t>(size_of(done)));
    }
    if (i >= count) continue;
    Chunk& chunk = at(first + i);
    settle(chunk);
    const char* from = static_cast<const char*>(device) + i * kChunkBytes;
    check_copy(ctx, kernels_->copy_out(ctx, chunk.data, from, static_cast<uint64_t>(size_of(i))));
    mark(ctx, chunk);
  }
}

}  // namespace balora
