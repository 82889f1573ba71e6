// The block that runs: its threads, what they wait for, its shared memory. Inside of the emulator.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "fibre.h"
#include "shadow.h"

namespace emulator {

constexpr unsigned kLanes = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr int64_t kStaticLimit = 48 << 10;  // bytes of static shared arrays in a block
constexpr int64_t kSharedLimit = 99 << 10;  // and with the dynamic part, on sm_86 and sm_89

enum class Wait : uint8_t { kNone, kBlock, kWarp, kDone };

struct Copy {
  char* to;
  const char* from;
  int valid;
};

struct Lane {
  Fibre fibre;
  uint3 index;
  Wait wait = Wait::kNone;
  Meeting meeting = Meeting::kBarrier;
  unsigned mask = 0, present = 0;
  Combine combine = nullptr;
  Site site{};
  int predicate = 0;
  uint32_t stamp = 1;
  uint32_t known[kLanes + 1];
  const Slots* taken = nullptr;
  std::unique_ptr<Slots> own;  // of a meeting of a part of the warp
  std::vector<Copy> copies;    // of all groups, oldest first
  std::vector<size_t> groups;  // how many copies each committed group has
};

struct Warp {
  unsigned alive = 0, waiting = 0;
  uint32_t clock = 1;
  unsigned turn = 0;
  Slots brought;
  Slots taken[2];  // of meetings of the whole warp
};

// Shared memory that was asked for: a static array, or a region of the dynamic part.
struct Region {
  const void* key;  // null: dynamic
  size_t offset, bytes;
  Site site;
};

struct Block {
  const Launch* launch = nullptr;
  unsigned threads = 0;
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<std::unique_ptr<Warp>> warps;
  uint3 at{0, 0, 0};
  unsigned running = 0;                             // index in lanes
  int count = 0;                                    // result of the latest block_count
  std::vector<std::pair<uint32_t, uint3>> started;  // first epoch and index of each block so far
  std::vector<Region> regions;
  size_t dynamic_room = 0, static_bytes = 0, room = 0;
  std::string error;
};

// One kernel runs at a time (runtime.cc holds a lock); null outside of one.
extern Block* current;
// Set while a kernel's own code runs on this thread; null in the emulator's.
extern thread_local Running* running __attribute__((tls_model("initial-exec")));

// Runs a kernel whose limits have been checked; returns what is wrong with it, or "".
std::string run_kernel(const Launch& launch, int device);

// Ends the launch with "kernel NAME, block (..), thread (..) WHAT". Called by the thread at fault.
[[noreturn]] void fail(const std::string& what, const void* code = nullptr);
[[noreturn]] void leave_for_good(std::string error);

std::string text_of(uint3 at);
std::string text_of(Site site);
std::string text_of_thread(const Block& block, uint32_t thread);

// Shared memory of the block that runs (shared.cc): the dynamic part, then the static arrays, with
// room that may not be touched behind every region. Offsets count from the start of `memory`.
struct SharedRoom {
  static constexpr size_t kUnit = 128;  // alignment of every region, and the room behind it
  static constexpr size_t kBytes = 2 * (kSharedLimit + kStaticLimit) + (64 << 10);

  alignas(kUnit) char memory[kBytes];
  uint8_t valid_of[kBytes / kUnit];  // of each unit, how many bytes from its start on
  Cell fours[kBytes / 4], bytes[kBytes];

  size_t offset(const void* at) const {
    return static_cast<size_t>(static_cast<const char*>(at) - memory);
  }
  bool valid(size_t offset, size_t bytes) const {
    if (offset % kUnit + bytes <= kUnit) {
      return offset % kUnit + bytes <= valid_of[offset / kUnit];
    }
    return valid_range(offset, bytes);
  }
  bool valid_range(size_t offset, size_t bytes) const;
  Shadow shadow() { return {fours, bytes}; }
};
extern SharedRoom shared_room;
void open_shared(Block& block);
std::string describe_shared(const Block& block, size_t offset);

}  // namespace emulator
