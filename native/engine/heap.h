// A heap over segments that a device gave: best fit, split, merged with its neighbours when freed.
// Requests of any mix of sizes then share one range of memory, and what is held stays close to the
// largest sum of live blocks, where one free list a size would keep a copy for every size seen.
//
// Where the device can take back the pages of a part of a segment (kernel_table.h: discard), a
// segment is a large reservation whose pages count as held ("committed") from the first block over
// them until they are discarded. Elsewhere a segment is as large as it must be, committed whole,
// and goes back to the device when all of it is free. With BALORA_EXACT_BLOCKS=1 in the environment
// there are no segments on such a device: each block is an allocation of its own and exactly as
// long as asked for, so that a tool that checks accesses knows its bounds.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kernels/kernel_table.h"

namespace balora {

class Heap {
 public:
  struct Options {
    int64_t unit;      // blocks begin and end at multiples of it; at least 64
    int64_t granule;   // pages are committed and discarded in chunks of this size
    int64_t reserved;  // size of a segment where pages can be discarded
    int64_t eager;     // and where they cannot, to begin with
  };

  Heap(const KernelTable* kernels, void* device_state, const Options& options);
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  void* allocate(int64_t bytes);  // null: the device has no more
  void release(void* data);

  // Gives free pages back, those of the largest blocks first, until at most
  // `keep` bytes are committed.
  void discard(int64_t keep);

  // Where blocks are allocations of their own: for the time being they are not, and none goes back,
  // for a device that records a graph must not be asked to take memory.
  void hold_exact(bool value);

  int64_t committed_bytes() const { return committed_; }
  int64_t used_bytes() const { return used_; }  // blocks handed out, with their rounding
  int64_t growths() const { return growths_; }  // allocations that committed pages

 private:
  struct Segment {
    char* data;
    int64_t bytes;
    std::vector<bool> committed;  // by granule
  };
  struct Block {
    int64_t bytes;
    bool free;
    Segment* segment;
  };
  using Blocks = std::map<char*, Block>;

  void* allocate_exact(int64_t bytes);
  void release_exact(char* data);
  bool lazy() const { return kernels_->discard != nullptr; }
  bool add_segment(int64_t bytes);
  void split(Blocks::iterator block, int64_t bytes);
  void commit(const Blocks::iterator& block);
  void merge_with_next(Blocks::iterator block);
  void discard_pages(const Blocks::iterator& block);
  void drop_segment(Blocks::iterator block);

  const KernelTable* kernels_;
  void* device_state_;
  Options options_;
  bool exact_;
  bool held_ = false;
  std::vector<char*> waiting_;                // exact blocks released meanwhile
  std::map<char*, int64_t> exact_blocks_;     // address to bytes
  Blocks blocks_;                             // all of them, by address
  std::set<std::pair<int64_t, char*>> free_;  // by size, then address
  std::vector<std::unique_ptr<Segment>> segments_;
  int64_t committed_ = 0, used_ = 0, growths_ = 0;
};

}  // namespace balora
