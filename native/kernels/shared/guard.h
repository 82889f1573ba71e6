// From a device's kernel, which may throw, to the C function of its table.
#pragma once
#include <cstdint>
#include <type_traits>

#include "kernels/kernel_table.h"
#include "tensor/errors.h"

namespace balora {

// Throws for a code that the kernels do not know, which would leave their output unwritten.
inline void require_known(int64_t code, int32_t known, const char* what) {
  if (code >= 0 && code < known) return;
  throw UnsupportedError(concat(what, " number ", code, " is not known to this device, whose ",
                                "kernels know ", known));
}

// The code among a row's operands, if it has one.
template <typename O>
void require_known_codes(const O& o) {
  if constexpr (requires { o.op; }) {
    using Op = std::remove_cvref_t<decltype(o.op)>;
    if constexpr (std::is_same_v<Op, balora_binary_op>) {
      require_known(o.op, BALORA_BINARY_OPS, "binary op");
    } else if constexpr (std::is_same_v<Op, balora_compare_op>) {
      require_known(o.op, BALORA_COMPARE_OPS, "comparison");
    } else if constexpr (std::is_same_v<Op, balora_reduce_op>) {
      require_known(o.op, BALORA_REDUCE_OPS, "reduction");
    } else {
      static_assert(std::is_same_v<Op, balora_unary_op>);
      require_known(o.op, BALORA_UNARY_OPS, "unary op");
    }
  }
  if constexpr (requires { o.activation; }) {
    require_known(o.activation, BALORA_ACTIVATIONS, "activation");
  }
  if constexpr (requires { o.reduction; }) {
    require_known(o.reduction, BALORA_REDUCTIONS, "reduction of a loss");
  }
  if constexpr (requires { o.kind; }) require_known(o.kind, BALORA_NORM_KINDS, "norm");
}

// Guard<Run, kernel>::call is the function for the table. Run::guarded(ctx, body) is the device's:
// it returns what body() returns, or 1 with the message of what it threw.
template <typename Run, auto Kernel>
struct Guard;

template <typename Run, typename O, int32_t (*Kernel)(Context*, const O&)>
struct Guard<Run, Kernel> {
  static int32_t call(Context* ctx, const O* operands) {
    return Run::guarded(ctx, [&] {
      require_known_codes(*operands);
      return Kernel(ctx, *operands);
    });
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
