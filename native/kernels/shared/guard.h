// From a device's kernel, which may throw, to the C function of its table.
#pragma once
#include <cstdint>
#include <type_traits>

#include "kernels/kernel_table.h"

namespace balora {

// Guard<Run, kernel>::call is the function for the table. Run::guarded(ctx, body) is the device's:
// it returns what body() returns, or 1 with the message of what it threw.
template <typename Run, auto Kernel>
struct Guard;

template <typename Run, typename O, int32_t (*Kernel)(Context*, const O&)>
struct Guard<Run, Kernel> {
  static int32_t call(Context* ctx, const O* operands) {
    return Run::guarded(ctx, [&] { return Kernel(ctx, *operands); });
  }
};

template <typename Run, typename... Args, int32_t (*Kernel)(Context*, Args...)>
  requires(!std::is_reference_v<Args> && ...)
struct Guard<Run, Kernel> {
  static int32_t call(Context* ctx, Args... args) {
    return Run::guarded(ctx, [&] { return Kernel(ctx, args...); });
  }
};

}  // namespace balora
