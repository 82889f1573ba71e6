#include "engine/allocator.h"

#include <algorithm>
#include <bit>

#include "tensor/errors.h"

namespace balora {
namespace {

constexpr int64_t kSmallest = 256;

// The next size of the form (4..7) * 2^k, so at most a quarter is wasted.
int64_t class_size(int64_t bytes) {
  const uint64_t n = static_cast<uint64_t>(std::max(bytes, kSmallest));
  const int shift = std::max(0, static_cast<int>(std::bit_width(n - 1)) - 3);
  return static_cast<int64_t>(((n - 1) >> shift) + 1) << shift;
}

}  // namespace

Allocator::Allocator(const KernelTable* kernels, void* device_state)
    : kernels_(kernels), device_state_(device_state) {
  tags_.emplace_back("default", 0);
}

Allocator::~Allocator() {
  trim();
}

void* Allocator::allocate(int64_t bytes, int tag) {
  const int64_t size = class_size(bytes);
  std::lock_guard lock(mutex_);
  if (limit_ > 0 && stats_.live_bytes + bytes > limit_) {
    throw NativeError(concat("out of memory: ", bytes, " bytes wanted, ", stats_.live_bytes,
                             " in use, the limit is ", limit_));
  }
  void* data = nullptr;
  if (auto it = cache_.find(size); it != cache_.end() && !it->second.empty()) {
    data = it->second.back();
    it->second.pop_back();
    stats_.cached_bytes -= size;
  } else {
    data = kernels_->allocate(device_state_, static_cast<uint64_t>(size));
    if (!data) {
      trim_locked();
      data = kernels_->allocate(device_state_, static_cast<uint64_t>(size));
    }
    if (!data) {
      throw NativeError(concat("out of memory: ", bytes, " bytes wanted, ", stats_.live_bytes,
                               " in use on ", kernels_->device));
    }
    ++stats_.allocations;
  }
  stats_.live_bytes += bytes;
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.live_bytes);
  tags_[static_cast<size_t>(tag)].second += bytes;
  return data;
}

void Allocator::release(void* data, int64_t bytes, int tag) {
  const int64_t size = class_size(bytes);
  std::lock_guard lock(mutex_);
  cache_[size].push_back(data);
  stats_.cached_bytes += size;
  stats_.live_bytes -= bytes;
  tags_[static_cast<size_t>(tag)].second -= bytes;
}

int Allocator::tag(const std::string& name) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < tags_.size(); ++i) {
    if (tags_[i].first == name) return static_cast<int>(i);
  }
  tags_.emplace_back(name, 0);
  return static_cast<int>(tags_.size() - 1);
}

void Allocator::account_derived(int64_t bytes) {
  std::lock_guard lock(mutex_);
  stats_.derived_bytes += bytes;
}

MemoryStats Allocator::stats() const {
  std::lock_guard lock(mutex_);
  MemoryStats stats = stats_;
  stats.by_tag = tags_;
  return stats;
}

void Allocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak_bytes = stats_.live_bytes;
}

void Allocator::trim() {
  std::lock_guard lock(mutex_);
  trim_locked();
}

void Allocator::set_limit(int64_t bytes) {
  std::lock_guard lock(mutex_);
  limit_ = bytes;
}

void Allocator::trim_locked() {
  for (auto& [size, blocks] : cache_) {
    for (void* block : blocks) kernels_->release(device_state_, block, static_cast<uint64_t>(size));
    blocks.clear();
  }
  stats_.cached_bytes = 0;
}

}  // namespace balora
