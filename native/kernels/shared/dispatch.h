// From a view and its run-time dtype to elements of a compile-time type. Kernels load into Acc<T>,
// compute there, and store with one rounding to nearest even.
#pragma once
#include <string>
#include <type_traits>
#include <utility>

#include "tensor/dtype.h"
#include "tensor/errors.h"
#include "tensor/view.h"

namespace balora {

// The type of arithmetic on T: double for double, else float.
template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The dtype of a type of arithmetic.
template <typename A>
constexpr int32_t kDtypeOfAcc = std::is_same_v<A, double> ? BALORA_F64 : BALORA_F32;

// The elements of a view; null for an operand that is absent.
template <typename T>
T* data_of(const View* view) {
  return view ? static_cast<T*>(view->data) : nullptr;
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

// The same over the types that an optimiser's state may have.
template <typename Body>
decltype(auto) dispatch_optimizer_state(int32_t dtype, Body&& body) {
  if (dtype != BALORA_F32 && dtype != BALORA_F64) {
    throw UnsupportedError("optimiser state must be f32 or f64");
  }
  return dtype == BALORA_F32 ? body.template operator()<float>()
                             : body.template operator()<double>();
}

}  // namespace balora
