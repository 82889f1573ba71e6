// From a run-time dtype to a compile-time element type, and from storage to arithmetic: kernels
// load into Acc<T> (double for double, else float), compute there, and store with one rounding to
// nearest even.
#pragma once
#include <string>

#include "kernels/cpu/runtime/simd.h"
#include "tensor/dtype.h"
#include "tensor/errors.h"
#include "tensor/view.h"

namespace balora {

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename T>
using Acc = typename AccOf<T>::type;

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

// Calls body.template operator()<T>() for the float type of `dtype`.
template <typename Body>
decltype(auto) dispatch_float(int32_t dtype, Body&& body) {
  switch (dtype) {
    case BALORA_F32:
      return body.template operator()<float>();
    case BALORA_BF16:
      return body.template operator()<bf16>();
    case BALORA_F16:
      return body.template operator()<f16>();
    case BALORA_F64:
      return body.template operator()<double>();
    default:
      throw UnsupportedError("dtype number " + std::to_string(dtype) + " is not a float type");
  }
}

// The same over every element type, for kernels that move or compare values.
template <typename Body>
decltype(auto) dispatch_any(int32_t dtype, Body&& body) {
  switch (dtype) {
    case BALORA_I32:
      return body.template operator()<int32_t>();
    case BALORA_I64:
      return body.template operator()<int64_t>();
    case BALORA_U8:
      return body.template operator()<uint8_t>();
    default:
      return dispatch_float(dtype, std::forward<Body>(body));
  }
}

template <typename T>
T* data_of(const View* view) {
  return static_cast<T*>(view->data);
}

}  // namespace balora
