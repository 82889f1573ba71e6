// The check of one access of a kernel: whether its address may be touched (shadow.h has the races).
#pragma once
#include "arena.h"
#include "block.h"

namespace emulator {

// Any number of bytes at any address. `code` is where the access is made.
void check_range(Running& self, const char* at, size_t bytes, Access how, const void* code);

// An address that is neither valid shared memory nor valid memory of the launch's device.
void check_elsewhere(const char* at, size_t bytes, Access how, const void* code);
[[noreturn]] void fail_access(const Running& self, const Finding& finding, const char* base,
                              size_t bytes, Access how, const void* code);
[[noreturn]] void fail_alignment(const void* at, size_t alignment, Site site, const void* code);

// Not on the thread's own stack.
inline __attribute__((always_inline)) void check_memory(Running& self, const char* at, size_t bytes,
                                                        Access how, const void* code) {
  const size_t in_shared = shared_room.offset(at);
  if (in_shared < SharedRoom::kBytes && shared_room.valid(in_shared, bytes)) {
    const Finding finding = touch<true>(self, shared_room.shadow(), in_shared, bytes, how);
    if (finding.trouble == Trouble::kNone) return;
    fail_access(self, finding, shared_room.memory, bytes, how, code);
  }
  const auto in_device = static_cast<size_t>(at - self.device);
  const Arena& arena = *self.arena;
  if (in_device < Arena::kPart && arena.valid(at, bytes)) {
    const Finding finding = touch<false>(self, self.shadow, in_device, bytes, how);
    if (finding.trouble == Trouble::kNone) return;
    fail_access(self, finding, self.device, bytes, how, code);
  }
  check_elsewhere(at, bytes, how, code);
}

}  // namespace emulator
