// The system below native/: all that is asked of it beside files, behind one header, with an
// implementation a system (linux.cc, posix.cc) of which the build takes one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace balora::platform {

// ---- memory -------------------------------------------------------------------------------------

// Bytes with the swap that may be used; both 0 where they are not known.
struct MachineMemory {
  uint64_t free_bytes = 0;  // with what the system would take back from caches of files
  uint64_t total_bytes = 0;
};

// The memory that this process may use: the machine's, or less where a control group that holds the
// process (a container, a batch system's job) has a limit. Reads Linux's files below `root`:
// proc/meminfo, proc/self/cgroup, and the limits of the process's control groups of version 1 or 2
// and of all groups around them. Never throws for a file that is missing or of another form: it
// sets no limit.
MachineMemory machine_memory(const std::string& root = "");

// For large blocks that do not come from the engine's allocator, which checks its own: the system
// gives their addresses, and ends the process at the first write that it has no page for.
// @throws std::bad_alloc where the process may not use that much more
void require_memory(uint64_t bytes);

struct FreeAligned {
  void operator()(void* data) const;
};
using AlignedMemory = std::unique_ptr<void, FreeAligned>;

constexpr uint64_t kAlignment = 64;  // of the blocks below
constexpr uint64_t aligned_bytes(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}
// aligned_bytes(bytes) bytes without a value.
// @throws std::bad_alloc, also as require_memory() does
AlignedMemory allocate_aligned(uint64_t bytes);

// Large blocks of addresses, whose pages come with the first write: huge ones where the system has
// them, for fewer misses of the TLB in products. Null: it has no more addresses.
void* reserve(uint64_t bytes);
void release(void* data, uint64_t bytes);
// Whether discard() does something here.
bool discards();
// Gives whole pages back to the system; what they held is lost.
void discard(void* data, uint64_t bytes);

// Bytes that malloc has given out and that have not been freed, in all threads of the process; -1
// where the C library does not say.
double malloc_bytes();

// ---- libraries ----------------------------------------------------------------------------------

// Loads a library for the rest of the process; null, with the reason, where that fails.
void* open_library(const std::string& path, std::string* why);
// A function of it; null: it has none of this name.
void* symbol(void* library, const char* name);
// Path of the library that has a function; empty where that is not known.
std::string library_of(const void* function);
// Keeps the library that has a function loaded until the process ends.
void keep_loaded(const void* function);

// ---- threads ------------------------------------------------------------------------------------

// Cores that this process may use, at least 1.
int usable_cores();
// Makes the calling thread, and those that it starts later, nicer by so much (nice(2)); where
// priorities are the process's, nothing.
void lower_priority(int nice);

}  // namespace balora::platform
