#include "engine/allocator.h"

#include <algorithm>

#include "tensor/errors.h"

namespace balora {
namespace {

constexpr int64_t kKiB = 1024, kMiB = kKiB * kKiB, kGiB = kKiB * kMiB;
constexpr Heap::Options kSmallBlocks = {64, 64 * kKiB, kGiB, 2 * kMiB};
// Whole huge pages are committed and discarded, so that none is torn.
constexpr Heap::Options kLargeBlocks = {4 * kKiB, 2 * kMiB, 64 * kGiB, 64 * kMiB};

// Held beyond the largest live sum before free pages go back: a share of it and a floor.
constexpr int64_t kSlackShare = 4;
constexpr int64_t kSlackFloor = 32 * kMiB;

// The host is asked for its free memory each time this much has been added to the heaps, and this
// much is left for the rest of the process.
constexpr int64_t kHostMargin = 32 * kMiB;

}  // namespace

Allocator::Allocator(const KernelTable* kernels, std::shared_ptr<void> device_state,
                     std::string device)
    : kernels_(kernels),
      device_state_(std::move(device_state)),
      device_(std::move(device)),
      small_(kernels, device_state_.get(), kSmallBlocks),
      large_(kernels, device_state_.get(), kLargeBlocks) {
  tags_.emplace_back("default", 0);
}

void* Allocator::allocate(int64_t bytes, int tag) {
  std::lock_guard lock(mutex_);
  if (limit_ > 0 && stats_.live_bytes + bytes > limit_) {
    throw OutOfMemoryError(concat(bytes, " bytes wanted, ", stats_.live_bytes, " in use on ",
                                  device_, ", the limit is ", limit_));
  }
  if (device_ == "cpu") require_free(bytes);
  void* data = take(bytes);
  if (!data) {
    throw OutOfMemoryError(
        concat(bytes, " bytes wanted, ", stats_.live_bytes, " in use on ", device_));
  }
  stats_.live_bytes += bytes;
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.live_bytes);
  tags_[static_cast<size_t>(tag)].second += bytes;
  return data;
}

// Pages come when they are written to, and the system ends a process that it has none for. So a
// block for which the heaps need more pages than the host has free is refused.
void Allocator::require_free(int64_t bytes) {
  const auto held = [&] { return small_.committed_bytes() + large_.committed_bytes(); };
  const auto growth = [&] {
    const Heap& heap = heap_for(bytes);
    return std::max<int64_t>(0, bytes - (heap.committed_bytes() - heap.used_bytes()));
  };
  checked_at_ = std::min(checked_at_, held());
  if (growth() == 0 || held() + growth() - checked_at_ < kHostMargin || !kernels_->memory) return;
  uint64_t free = 0, total = 0;
  const auto fits = [&] {
    if (kernels_->memory(device_state_.get(), &free, &total) != 0 || total == 0) return true;
    return static_cast<uint64_t>(growth()) + kHostMargin <= free;
  };
  if (!fits()) {
    if (!hold_everything_) {
      small_.discard(0);
      large_.discard(0);
    }
    if (!fits()) {
      throw OutOfMemoryError(concat(bytes, " bytes wanted, ", stats_.live_bytes, " in use on ",
                                    device_, ", of the ", total,
                                    " that this process may have with swap ", free, " are free"));
    }
  }
  checked_at_ = held() + growth();
}

void* Allocator::take(int64_t bytes) {
  Heap& heap = heap_for(bytes);
  const int64_t growths = heap.growths();
  void* data = heap.allocate(bytes);
  if (!data && !hold_everything_) {
    small_.discard(0);
    large_.discard(0);
    data = heap.allocate(bytes);
  }
  most_used_ = std::max(most_used_, small_.used_bytes() + large_.used_bytes());
  if (heap.growths() > growths && !hold_everything_) hold_to_bound();
  return data;
}

// The pages of a block just handed out have not been touched yet, so what is discarded here never
// stands beside them.
void Allocator::hold_to_bound() {
  const int64_t bound = most_used_ + std::max(most_used_ / kSlackShare, kSlackFloor);
  if (small_.committed_bytes() + large_.committed_bytes() <= bound) return;
  large_.discard(bound - small_.committed_bytes());
  small_.discard(bound - large_.committed_bytes());
}

void Allocator::release(void* data, int64_t bytes, int tag) {
  std::lock_guard lock(mutex_);
  heap_for(bytes).release(data);
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
  stats.cached_bytes =
      small_.committed_bytes() + large_.committed_bytes() - (stats.live_bytes - reserved_);
  stats.allocations = small_.growths() + large_.growths();
  return stats;
}

void Allocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak_bytes = stats_.live_bytes;
}

void Allocator::trim() {
  std::lock_guard lock(mutex_);
  small_.discard(0);
  large_.discard(0);
}

void Allocator::hold_everything(bool value) {
  std::lock_guard lock(mutex_);
  hold_everything_ = value;
  small_.hold_exact(value);
  large_.hold_exact(value);
}

void Allocator::account_reserved(int64_t bytes, int tag) {
  std::lock_guard lock(mutex_);
  stats_.live_bytes += bytes;
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.live_bytes);
  tags_[static_cast<size_t>(tag)].second += bytes;
  reserved_ += bytes;
}

void Allocator::set_limit(int64_t bytes) {
  std::lock_guard lock(mutex_);
  limit_ = bytes;
}

}  // namespace balora
