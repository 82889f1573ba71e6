#include "engine/heap.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "platform/environment.h"

namespace balora {
namespace {

constexpr int64_t kGrowthShare = 8;
constexpr int64_t kLargestEager = int64_t{512} << 20;

int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

bool exact_wanted() {
  const char* value = variable("BALORA_EXACT_BLOCKS");
  return value && std::string_view(value) == "1";
}

}  // namespace

Heap::Heap(const KernelTable* kernels, void* device_state, const Options& options)
    : kernels_(kernels),
      device_state_(device_state),
      options_(options),
      exact_(!lazy() && exact_wanted()) {}

Heap::~Heap() {
  for (const auto& [data, bytes] : exact_blocks_) {
    kernels_->release(device_state_, data, static_cast<uint64_t>(bytes));
  }
  for (const auto& segment : segments_) {
    kernels_->release(device_state_, segment->data, static_cast<uint64_t>(segment->bytes));
  }
}

void* Heap::allocate_exact(int64_t bytes) {
  const int64_t size = std::max<int64_t>(bytes, 1);
  void* data = kernels_->allocate(device_state_, static_cast<uint64_t>(size));
  if (!data) return nullptr;
  exact_blocks_[static_cast<char*>(data)] = size;
  committed_ += size;
  used_ += size;
  ++growths_;
  return data;
}

void Heap::release_exact(char* data) {
  const auto block = exact_blocks_.find(data);
  committed_ -= block->second;
  used_ -= block->second;
  kernels_->release(device_state_, data, static_cast<uint64_t>(block->second));
  exact_blocks_.erase(block);
}

void Heap::hold_exact(bool value) {
  held_ = value;
  if (value) return;
  for (char* data : waiting_) release_exact(data);
  waiting_.clear();
}

void* Heap::allocate(int64_t bytes) {
  if (exact_ && !held_) return allocate_exact(bytes);
  const int64_t size = round_up(std::max<int64_t>(bytes, 1), options_.unit);
  const std::pair<int64_t, char*> smallest{size, {}};
  auto found = free_.lower_bound(smallest);
  if (found == free_.end()) {
    if (!add_segment(size)) return nullptr;
    found = free_.lower_bound(smallest);
  }
  const auto block = blocks_.find(found->second);
  free_.erase(found);
  split(block, size);
  block->second.free = false;
  commit(block);
  used_ += size;
  return block->first;
}

void Heap::release(void* data) {
  if (exact_blocks_.contains(static_cast<char*>(data))) {
    if (!held_) return release_exact(static_cast<char*>(data));
    waiting_.push_back(static_cast<char*>(data));
    return;
  }
  auto block = blocks_.find(static_cast<char*>(data));
  used_ -= block->second.bytes;
  block->second.free = true;
  merge_with_next(block);
  if (block != blocks_.begin()) {
    const auto before = std::prev(block);
    if (before->second.free && before->second.segment == block->second.segment) {
      free_.erase({before->second.bytes, before->first});
      merge_with_next(before);
      block = before;
    }
  }
  free_.insert({block->second.bytes, block->first});
}

void Heap::discard(int64_t keep) {
  std::vector<char*> largest_first;
  for (auto it = free_.rbegin(); it != free_.rend(); ++it) largest_first.push_back(it->second);
  for (char* data : largest_first) {
    if (committed_ <= keep) return;
    const auto block = blocks_.find(data);
    if (lazy()) {
      discard_pages(block);
    } else if (block->second.bytes == block->second.segment->bytes) {
      drop_segment(block);
    }
  }
}

bool Heap::add_segment(int64_t bytes) {
  const int64_t least = round_up(bytes, options_.granule);
  // Blocks never cross segments, so these grow with the heap: few requests, and little left over.
  const int64_t eager = std::clamp(round_up(committed_ / kGrowthShare, options_.granule),
                                   options_.eager, std::max(options_.eager, kLargestEager));
  int64_t size = std::max(least, lazy() ? options_.reserved : eager);
  void* data = nullptr;
  for (;;) {
    data = kernels_->allocate(device_state_, static_cast<uint64_t>(size));
    if (data || size == least) break;
    // A limit on address space or memory: ask for less.
    size = std::max(least, round_up(size / 4, options_.granule));
  }
  if (!data) return false;
  auto segment = std::make_unique<Segment>();
  segment->data = static_cast<char*>(data);
  segment->bytes = size;
  segment->committed.assign(static_cast<size_t>(size / options_.granule), !lazy());
  if (!lazy()) {
    committed_ += size;
    ++growths_;
  }
  blocks_[segment->data] = {size, true, segment.get()};
  free_.insert({size, segment->data});
  segments_.push_back(std::move(segment));
  return true;
}

// Leaves the block `bytes` long and what was behind it a free block of its own.
void Heap::split(Blocks::iterator block, int64_t bytes) {
  const int64_t rest = block->second.bytes - bytes;
  if (rest == 0) return;
  block->second.bytes = bytes;
  char* behind = block->first + bytes;
  blocks_.emplace_hint(std::next(block), behind, Block{rest, true, block->second.segment});
  free_.insert({rest, behind});
}

void Heap::commit(const Blocks::iterator& block) {
  Segment& segment = *block->second.segment;
  const int64_t begin = (block->first - segment.data) / options_.granule;
  const int64_t end =
      (block->first - segment.data + block->second.bytes - 1) / options_.granule + 1;
  int64_t added = 0;
  for (int64_t i = begin; i < end; ++i) {
    if (segment.committed[static_cast<size_t>(i)]) continue;
    segment.committed[static_cast<size_t>(i)] = true;
    added += options_.granule;
  }
  committed_ += added;
  growths_ += added > 0;
}

// The next block, if free and of the same segment, becomes a part of this one.
void Heap::merge_with_next(Blocks::iterator block) {
  const auto next = std::next(block);
  if (next == blocks_.end() || !next->second.free ||
      next->second.segment != block->second.segment) {
    return;
  }
  free_.erase({next->second.bytes, next->first});
  block->second.bytes += next->second.bytes;
  blocks_.erase(next);
}

// Gives back the committed granules that lie whole inside a free block.
void Heap::discard_pages(const Blocks::iterator& block) {
  Segment& segment = *block->second.segment;
  const int64_t offset = block->first - segment.data;
  const int64_t end = (offset + block->second.bytes) / options_.granule;
  int64_t i = round_up(offset, options_.granule) / options_.granule;
  while (i < end) {
    int64_t run = i;
    while (run < end && segment.committed[static_cast<size_t>(run)]) {
      segment.committed[static_cast<size_t>(run++)] = false;
    }
    if (run > i) {
      const int64_t bytes = (run - i) * options_.granule;
      kernels_->discard(device_state_, segment.data + i * options_.granule,
                        static_cast<uint64_t>(bytes));
      committed_ -= bytes;
    }
    i = run + 1;
  }
}

void Heap::drop_segment(Blocks::iterator block) {
  Segment* segment = block->second.segment;
  free_.erase({block->second.bytes, block->first});
  blocks_.erase(block);
  kernels_->release(device_state_, segment->data, static_cast<uint64_t>(segment->bytes));
  committed_ -= segment->bytes;
  std::erase_if(segments_, [&](const auto& one) { return one.get() == segment; });
}

}  // namespace balora
