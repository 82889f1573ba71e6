// Weights that are larger than memory. Their bytes are maps of files, of which a fixed share stays
// in memory; the rest is read ahead of the ops that use it and dropped behind them. An op announces
// what it reads when it is enqueued, long before it runs, so the order in which bytes are wanted is
// known, whatever it is: forward, backward, a layer that is computed again, text generation.
//
// Dropping takes pages from this process alone (MADV_DONTNEED on a private map of a file: the page
// tables forget them). They stay in the system's cache while nobody needs that memory, and other
// processes that map the file keep theirs. posix_fadvise(POSIX_FADV_DONTNEED) would empty the cache
// under programs that read the file, so it is not used.
//
// Bytes that no file holds as they are used (converted, quantised or put in another order while
// loading) go into a cache file without a name, which the system removes at the end of the process.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "tensor/storage.h"

namespace balora::io {

// A part of the cache file, mapped.
class CachedPart : public ExternalMemory {
 public:
  virtual std::span<const std::byte> bytes() const = 0;
  // Fills it, before anybody reads it; the bytes are on the disk on return. Throws NativeError.
  virtual void write(const void* data) const = 0;
};

// Figures of an Offload, in bytes.
struct OffloadStats {
  uint64_t total = 0;         // of all weights that are read ahead
  uint64_t resident = 0;      // of the share that stays in memory
  uint64_t present = 0;       // read ahead or in use now, beside the share
  uint64_t most_present = 0;  // the largest of these since the limits were set
  uint64_t read = 0;          // read ahead or anew since the start
  double waited = 0;          // seconds that ops waited for bytes
};

class Offload {
 public:
  // folder: of the cache file, which is made when something is put into it.
  explicit Offload(std::string folder);
  ~Offload();  // ops that come later read their bytes themselves
  Offload(const Offload&) = delete;
  Offload& operator=(const Offload&) = delete;

  // Bytes that `owner` keeps mapped. Those of a table of which ops read a few rows (`gathered`) are
  // dropped behind them, and neither read ahead nor part of the share.
  std::shared_ptr<OffloadedMemory> add(std::span<const std::byte> bytes,
                                       std::shared_ptr<const ExternalMemory> owner, bool gathered);

  // Room in the cache file. Throws NativeError (ERR_DISK_FULL where the disk has none).
  std::shared_ptr<const CachedPart> reserve(size_t bytes);

  // resident: bytes that stay in memory at most, spread evenly over the weights in the order in
  // which they were added. ahead: bytes beside them that are read ahead or in use, at most, but for
  // what a single op reads.
  void set_limits(uint64_t resident, uint64_t ahead);

  OffloadStats stats() const;

 private:
  class Cache;
  struct State;
  struct Range;
  struct Use;
  static void read_ahead(State& state);

  std::shared_ptr<State> state_;
  std::shared_ptr<Cache> cache_;
  std::thread reader_;
};

}  // namespace balora::io
