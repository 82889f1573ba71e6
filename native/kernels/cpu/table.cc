// The CPU device's table: every row of kernels.def behind a guard that turns an
// exception into a status.
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "kernels/cpu/cpu_state.h"
#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/shared/guard.h"
#include "platform/platform.h"

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

void* allocate(void*, uint64_t bytes) {
  return platform::reserve(bytes);
}
void release(void*, void* data, uint64_t bytes) {
  platform::release(data, bytes);
}
void discard(void*, void* data, uint64_t bytes) {
  platform::discard(data, bytes);
}

int32_t memory(void*, uint64_t* free_bytes, uint64_t* total_bytes) {
  try {
    const platform::MachineMemory found = platform::machine_memory();
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

// The engine has it as the StreamState that is its base.
void* create_cpu_state(int32_t, char* error, uint64_t error_size) {
  try {
    return static_cast<StreamState*>(new CpuState);
  } catch (const std::exception& failure) {
    std::snprintf(error, error_size, "oneDNN: %s", failure.what());
    return nullptr;
  }
}
void destroy_cpu_state(void* state) {
  delete static_cast<StreamState*>(state);
}
void poison_cpu_scratch(void* state) {
  static_cast<StreamState*>(state)->scratch.poison();
}

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
    t.discard = platform::discards() ? discard : nullptr;
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
