// The CPU device's table: every row of kernels.def behind a guard that turns an exception into a
// status.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/cpu_state.h"

namespace balora {
namespace {

template <auto Kernel>
struct Guard;

template <typename... Args, int32_t (*Kernel)(Context*, Args...)>
struct Guard<Kernel> {
  static int32_t call(Context* ctx, Args... args) {
    try {
      return Kernel(ctx, args...);
    } catch (const std::bad_alloc&) {
      std::snprintf(ctx->error, sizeof ctx->error, "out of memory in scratch space");
    } catch (const std::exception& error) {
      std::snprintf(ctx->error, sizeof ctx->error, "%s", error.what());
    }
    return 1;
  }
};

constexpr size_t kAlignment = 64;
constexpr uint64_t kHugePageBytes = uint64_t{1} << 21;

// Large blocks start on a huge page, and ask for them: fewer TLB misses in the GEMMs.
void* allocate(void*, uint64_t bytes) {
  const bool large = bytes >= 2 * kHugePageBytes;
  const uint64_t alignment = large ? kHugePageBytes : kAlignment;
  void* data = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#if defined(__linux__)
  if (data && large) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

void release(void*, void* data, uint64_t) {
  std::free(data);
}

int32_t copy(Context*, void* destination, const void* source, uint64_t bytes) {
  if (bytes) std::memcpy(destination, source, bytes);
  return 0;
}

}  // namespace

const KernelTable* cpu_kernel_table() {
  static const KernelTable table = {
      BALORA_ABI,
      sizeof(KernelTable),
      "cpu",
      create_cpu_state,
      destroy_cpu_state,
      allocate,
      release,
      copy,
      copy,
#define KERNEL(name, signature) Guard<&name##_kernel>::call,
#include "kernels/kernels.def"
#undef KERNEL
  };
  return &table;
}

}  // namespace balora
