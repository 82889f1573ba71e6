// Element types on the CPU: from storage to arithmetic in Acc<T>, and back with one rounding to
// nearest even.
#pragma once
#include "kernels/cpu/runtime/inline.h"
#include "kernels/shared/dispatch.h"

namespace balora {

BALORA_INLINE float load(float value) {
  return value;
}
BALORA_INLINE double load(double value) {
  return value;
}
BALORA_INLINE float load(bf16 value) {
  return to_float(value);
}
BALORA_INLINE float load(f16 value) {
  return to_float(value);
}

template <typename T>
BALORA_INLINE T store(Acc<T> value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(value);
  } else if constexpr (std::is_same_v<T, f16>) {
    return to_f16(value);
  } else {
    return value;
  }
}

// The same for every element type: integers are computed with as they are.
template <typename T>
BALORA_INLINE auto load_any(T value) {
  if constexpr (std::is_integral_v<T>) {
    return value;
  } else {
    return load(value);
  }
}
template <typename T, typename A>
BALORA_INLINE T store_any(A value) {
  if constexpr (std::is_integral_v<T>) {
    return value;
  } else {
    return store<T>(value);
  }
}

// Calls body.operator()<kOp>() for the one of kOps that `op` is.
template <int... kOps, typename Body>
void dispatch_op(int op, const Body& body) {
  static_cast<void>(((op == kOps && (body.template operator()<kOps>(), true)) || ...));
}

}  // namespace balora
