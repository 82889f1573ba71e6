// A caching allocator with exact statistics over two heaps (heap.h), one for small blocks and one
// for large, so that a small block that lives long never splits the room of a large one. What is
// held beyond the live bytes is bounded: past a quarter of the largest live sum the free pages go
// back to the device, and all of them do when it refuses memory. A loop of equal steps, and one of
// steps of any sizes once it has seen the largest, makes no request to the device. Blocks are freed
// in stream order by construction: a queued op holds its storages until it has run.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/heap.h"
#include "kernels/kernel_table.h"
#include "tensor/storage.h"

namespace balora {

struct MemoryStats {
  int64_t live_bytes = 0;     // handed out now, as requested
  int64_t peak_bytes = 0;     // the largest live_bytes since the last reset
  int64_t cached_bytes = 0;   // held for reuse, with the rounding of live blocks
  int64_t derived_bytes = 0;  // packed layouts of frozen weights
  int64_t allocations = 0;  // requests that needed pages of the device (not served from the cache)
  std::vector<std::pair<std::string, int64_t>> by_tag;  // live bytes
};

class Allocator : public MemorySource {
 public:
  // `device` names the device in errors.
  Allocator(const KernelTable* kernels, std::shared_ptr<void> device_state, std::string device);

  void* allocate(int64_t bytes, int tag) override;
  void release(void* data, int64_t bytes, int tag) override;

  int tag(const std::string& name);  // the number of a tag, new or known
  void account_derived(int64_t bytes) override;
  MemoryStats stats() const;
  void reset_peak();
  void trim();                                    // gives the cache back to the device
  void hold_everything(bool value);               // no page goes back to the device meanwhile
  void account_reserved(int64_t bytes, int tag);  // held elsewhere on behalf of this device
  void set_limit(int64_t bytes);  // 0: none. Live bytes beyond it are refused with an error that
                                  // gives the sizes.

 private:
  Heap& heap_for(int64_t bytes) { return bytes < kLarge ? small_ : large_; }
  void* take(int64_t bytes);
  void hold_to_bound();
  void require_free(int64_t bytes);

  static constexpr int64_t kLarge = int64_t{256} << 10;

  const KernelTable* kernels_;
  std::shared_ptr<void> device_state_;  // before the heaps, which give their memory back to it
  std::string device_;
  mutable std::mutex mutex_;
  Heap small_, large_;
  std::vector<std::pair<std::string, int64_t>> tags_;
  MemoryStats stats_;
  int64_t most_used_ = 0;   // the largest sum of both heaps' used bytes
  int64_t checked_at_ = 0;  // committed bytes when the host was last asked for free ones
  int64_t limit_ = 0;
  int64_t reserved_ = 0;  // of live_bytes: not in these heaps
  bool hold_everything_ = false;
};

}  // namespace balora
