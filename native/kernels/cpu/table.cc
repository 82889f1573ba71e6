// The CPU device's table: every row of kernels.def behind a guard that turns an exception into a status.
#include <omp.h>

#include <cstdio>
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

}  // namespace

const KernelTable* cpu_kernel_table() {
  static const KernelTable table = {
      BALORA_ABI,        sizeof(KernelTable), "cpu", create_cpu_state, destroy_cpu_state,
#define KERNEL(name, signature) Guard<&name##_kernel>::call,
#include "kernels/kernels.def"
#undef KERNEL
  };
  return &table;
}

}  // namespace balora
