// The CPU device's table: every row of kernels.def behind a guard that turns an
// exception into a status.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/cpu_state.h"
#include "kernels/cpu/runtime/machine_memory.h"
#include "kernels/shared/guard.h"

namespace balora {
namespace {

struct Device {
  // The kernel's status, or 1 with the message of what it threw.
  template <typename Call>
  static int32_t guarded(Context* ctx, const Call& kernel) {
    try {
      return kernel();
    } catch (const std::bad_alloc&) {
      // workspace() has said why where it was the one to refuse.
      if (!ctx->error[0]) {
        std::snprintf(ctx->error, sizeof ctx->error, "out of memory in scratch space");
      }
    } catch (const std::exception& error) {
      std::snprintf(ctx->error, sizeof ctx->error, "%s", error.what());
    }
    return 1;
  }
};

#if defined(__linux__)
constexpr uint64_t kHugePageBytes = uint64_t{1} << 21;

uint64_t mapped_bytes(uint64_t bytes) {
  return (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
}

// Addresses without pages, from a huge page's start, and a request for huge pages: fewer TLB misses
// in the GEMMs. The kernel may hand out a page for each 4 KiB where it has no huge ones.
void* allocate(void*, uint64_t bytes) {
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

void release(void*, void* data, uint64_t bytes) {
  munmap(data, mapped_bytes(bytes));
}

void discard_pages(void*, void* data, uint64_t bytes) {
  madvise(data, bytes, MADV_DONTNEED);
}
constexpr auto kDiscard = discard_pages;
#else
constexpr size_t kAlignment = 64;

void* allocate(void*, uint64_t bytes) {
  return std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
}

void release(void*, void* data, uint64_t) {
  std::free(data);
}
constexpr decltype(KernelTable::discard) kDiscard = nullptr;
#endif

int32_t memory(void*, uint64_t* free_bytes, uint64_t* total_bytes) {
  try {
    const MachineMemory found = machine_memory();
    *free_bytes = found.free_bytes;
    *total_bytes = found.total_bytes;
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

int32_t copy(Context*, void* destination, const void* source, uint64_t bytes) {
  if (bytes) std::memcpy(destination, source, bytes);
  return 0;
}

}  // namespace

const KernelTable* cpu_kernel_table() {
  // Functions that are left out are null: kernels work on the host's memory, by the host's clock,
  // and have run when their rows return.
  static const KernelTable table = [] {
    KernelTable t{};
    t.abi = BALORA_ABI;
    t.size = sizeof(KernelTable);
    t.device = "cpu";
    t.codes = BALORA_KNOWN_CODES;
    t.create_state = create_cpu_state;
    t.destroy_state = destroy_cpu_state;
    t.allocate = allocate;
    t.release = release;
    t.discard = kDiscard;
    t.upload = copy;
    t.download = copy;
    t.memory = memory;
#define KERNEL(name) t.name = Guard<Device, &name##_kernel>::call;
#include "kernels/kernels.def"
    return t;
  }();
  return &table;
}

}  // namespace balora
