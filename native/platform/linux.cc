// The parts of platform.h that Linux has for itself.
#include <dlfcn.h>
#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "platform/platform.h"

namespace balora::platform {
namespace {

constexpr uint64_t kHugePageBytes = uint64_t{1} << 21;

uint64_t mapped_bytes(uint64_t bytes) {
  return (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
}

}  // namespace

// From a huge page's start. Where the kernel has no huge pages, it may hand out those of 4 KiB.
void* reserve(uint64_t bytes) {
  const uint64_t size = mapped_bytes(bytes), wide = size + kHugePageBytes;
  void* mapped = mmap(nullptr, wide, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* begin = static_cast<char*>(mapped);
  const uint64_t before =
      mapped_bytes(reinterpret_cast<uintptr_t>(begin)) - reinterpret_cast<uintptr_t>(begin);
  if (before > 0) munmap(begin, before);
  if (before < kHugePageBytes) munmap(begin + before + size, kHugePageBytes - before);
  madvise(begin + before, size, MADV_HUGEPAGE);
  return begin + before;
}

void release(void* data, uint64_t bytes) {
  munmap(data, mapped_bytes(bytes));
}

bool discards() {
  return true;
}

void discard(void* data, uint64_t bytes) {
  madvise(data, bytes, MADV_DONTNEED);
}

double malloc_bytes() {
#ifdef __GLIBC_PREREQ
#if __GLIBC_PREREQ(2, 33)
  const struct mallinfo2 info = mallinfo2();
  return static_cast<double>(info.uordblks + info.hblkhd);
#endif
#endif
  return -1;
}

void keep_loaded(const void* function) {
  const std::string path = library_of(function);
  if (!path.empty()) dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Niceness belongs to the thread, and is inherited by those that it starts.
void lower_priority(int nice) {
  const auto thread = static_cast<id_t>(syscall(SYS_gettid));
  const int now = getpriority(PRIO_PROCESS, thread);
  setpriority(PRIO_PROCESS, thread, std::min(19, now + nice));
}

}  // namespace balora::platform
