// The CUDA device's table: every row of kernels.def behind a guard that turns an exception into a
// status, and the one symbol that the plug-in exports.
#include <cstring>
#include <exception>
#include <iterator>
#include <new>

#include "runtime/common.cuh"
#include "runtime/state.cuh"

namespace balora::cuda {
namespace {

// The kernel's status, or 1 with the message of what it threw.
template <typename Call>
int32_t guarded(Context* ctx, const Call& kernel) {
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

template <auto Kernel>
struct Guard;

template <typename O, int32_t (*Kernel)(Context*, const O&)>
struct Guard<Kernel> {
  static int32_t call(Context* ctx, const O* operands) {
    return guarded(ctx, [&] { return Kernel(ctx, *operands); });
  }
};

template <typename... Args, int32_t (*Kernel)(Context*, Args...)>
  requires(!std::is_reference_v<Args> && ...)
struct Guard<Kernel> {
  static int32_t call(Context* ctx, Args... args) {
    return guarded(ctx, [&] { return Kernel(ctx, args...); });
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
  using namespace balora::cuda;
  static const balora_kernel_table table = {
      BALORA_ABI,
      sizeof(balora_kernel_table),
      "cuda",
      create_state,
      destroy_state,
      allocate,
      release,
      nullptr,  // discard: memory comes and goes in whole segments
      Guard<&upload>::call,
      Guard<&download>::call,
      pin,
      unpin,
      Guard<&copy_in>::call,
      Guard<&copy_out>::call,
      Guard<&mark>::call,
      reached,
      await_mark,
      unmark,
      Guard<&record>::call,
      elapsed,
      Guard<&synchronize>::call,
      describe,
      memory,
      Guard<&capture_begin>::call,
      Guard<&capture_end>::call,
      Guard<&graph_launch>::call,
      graph_destroy,
#define KERNEL(name) Guard<&name##_kernel>::call,
#include "kernels/kernels.def"
  };
  return &table;
}
