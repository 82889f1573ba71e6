// The memory that this process may use: the machine's, or less where a control group that holds the
// process (a container, a batch system's job) has a limit.
#pragma once
#include <cstdint>
#include <string>

namespace balora {

// Bytes with the swap that may be used; both 0 where they are not known.
struct MachineMemory {
  uint64_t free_bytes = 0;  // with what the system would take back from caches of files
  uint64_t total_bytes = 0;
};

// Reads Linux's files below `root`: proc/meminfo, proc/self/cgroup, and the limits of the process's
// control groups of version 1 or 2 and of all groups around them. Never throws for a file that is
// missing or of another form: it sets no limit.
MachineMemory machine_memory(const std::string& root = "");

// For large blocks that do not come from the engine's allocator, which checks its own: the system
// gives their addresses, and ends the process at the first write that it has no page for.
// @throws std::bad_alloc where the process may not use that much more
void require_host_memory(uint64_t bytes);

}  // namespace balora
