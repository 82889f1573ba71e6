// The parts of platform.h that macOS has for itself. No machine at hand has compiled or run it.
#include <cstdlib>
#include <thread>

#include "platform/platform.h"

namespace balora::platform {

void* reserve(uint64_t bytes) {
  return std::aligned_alloc(kAlignment, aligned_bytes(bytes));
}

void release(void* data, uint64_t) {
  std::free(data);
}

bool discards() {
  return false;
}

void discard(void*, uint64_t) {}

double malloc_bytes() {
  return -1;
}

void keep_loaded(const void*) {}

int usable_cores() {
  const unsigned cores = std::thread::hardware_concurrency();
  return cores > 0 ? static_cast<int>(cores) : 1;
}

void lower_priority(int) {}

}  // namespace balora::platform
