// The CUDA device's table: every row of kernels.def behind a guard that turns an exception into a
// status, and the one symbol that the plug-in exports.
#include <cstring>
#include <exception>
#include <iterator>
#include <new>

#include "kernels/shared/guard.h"
#include "runtime/common.cuh"
#include "runtime/state.cuh"

namespace balora::cuda {
namespace {

struct Device {
  // The kernel's status, or 1 with the message of what it threw.
  template <typename Call>
  static int32_t guarded(Context* ctx, const Call& kernel) {
    DeviceState& state = state_of(ctx);
    state.widened_count = 0;
    try {
      check_stream(ctx, state.failed.exchange(cudaSuccess), "allocate");
      // An engine's thread comes with device 0, and its last call may have freed another's memory.
      check_stream(ctx, cudaSetDevice(state.device), "cudaSetDevice");
      return kernel();
    } catch (const std::bad_alloc&) {
      std::snprintf(ctx->error, sizeof ctx->error, "out of memory on the host");
    } catch (const std::exception& error) {
      std::snprintf(ctx->error, sizeof ctx->error, "%s", error.what());
    } catch (...) {
      std::snprintf(ctx->error, sizeof ctx->error, "an unknown failure");
    }
    cudaGetLastError();  // cleared, since the next launch must not report it
    return 1;
  }
};

constexpr const char* kRows[] = {
#define KERNEL(name) #name,
#include "kernels/kernels.def"
};

}  // namespace

int32_t fault_row(const char* name) {
  for (size_t i = 0; i < std::size(kRows); ++i) {
    if (std::strcmp(kRows[i], name) == 0) return static_cast<int32_t>(i) + 1;
  }
  return 0;
}

const char* row_name(int32_t row) {
  const bool known = row > 0 && row <= static_cast<int32_t>(std::size(kRows));
  return known ? kRows[row - 1] : "a kernel";
}

}  // namespace balora::cuda

extern "C" __attribute__((visibility("default"))) const balora_kernel_table* balora_device_table(
    void) {
  using balora::Guard;
  using namespace balora::cuda;
  // discard is left out: memory comes and goes in whole segments.
  static const balora_kernel_table table = [] {
    balora_kernel_table t{};
    t.abi = BALORA_ABI;
    t.size = sizeof(balora_kernel_table);
    t.device = "cuda";
    t.codes = BALORA_KNOWN_CODES;
    t.create_state = create_state;
    t.destroy_state = destroy_state;
    t.allocate = allocate;
    t.release = release;
    t.upload = Guard<Device, &upload>::call;
    t.download = Guard<Device, &download>::call;
    t.pin = pin;
    t.unpin = unpin;
    t.copy_in = Guard<Device, &copy_in>::call;
    t.copy_out = Guard<Device, &copy_out>::call;
    t.mark = Guard<Device, &mark>::call;
    t.reached = reached;
    t.await_mark = await_mark;
    t.unmark = unmark;
    t.record = Guard<Device, &record>::call;
    t.elapsed = elapsed;
    t.synchronize = Guard<Device, &synchronize>::call;
    t.describe = describe;
    t.memory = memory;
    t.capture_begin = Guard<Device, &capture_begin>::call;
    t.capture_end = Guard<Device, &capture_end>::call;
    t.graph_launch = Guard<Device, &graph_launch>::call;
    t.graph_destroy = graph_destroy;
#define KERNEL(name) t.name = Guard<Device, &name##_kernel>::call;
#include "kernels/kernels.def"
    return t;
  }();
  return &table;
}
