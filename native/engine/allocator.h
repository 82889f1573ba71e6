// A caching allocator with exact statistics. Blocks are rounded to size classes (four per power of
// two) and kept for the next request of the same class; when the device refuses memory the cache is
// emptied and the request repeated. Blocks are freed in stream order by construction: a queued op
// holds its storages until it has run.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "tensor/storage.h"

namespace balora {

struct MemoryStats {
  int64_t live_bytes = 0;     // handed out now, as requested
  int64_t peak_bytes = 0;     // the largest live_bytes since the last reset
  int64_t cached_bytes = 0;   // held for reuse
  int64_t derived_bytes = 0;  // packed layouts of frozen weights
  int64_t allocations = 0;    // requests that went to the device (not served from the cache)
  std::vector<std::pair<std::string, int64_t>> by_tag;  // live bytes
};

class Allocator : public MemorySource {
 public:
  Allocator(const KernelTable* kernels, void* device_state);
  ~Allocator() override;

  void* allocate(int64_t bytes, int tag) override;
  void release(void* data, int64_t bytes, int tag) override;

  int tag(const std::string& name);  // the number of a tag, new or known
  void account_derived(int64_t bytes);
  MemoryStats stats() const;
  void reset_peak();
  void trim();                    // gives the cache back to the device
  void set_limit(int64_t bytes);  // 0: none. Live bytes beyond it are refused with an error that
                                  // gives the sizes.

 private:
  void trim_locked();

  const KernelTable* kernels_;
  void* device_state_;
  mutable std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> cache_;  // by class size
  std::vector<std::pair<std::string, int64_t>> tags_;
  MemoryStats stats_;
  int64_t limit_ = 0;
};

}  // namespace balora
