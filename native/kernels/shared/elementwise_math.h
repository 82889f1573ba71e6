// Binary ops, their gradients and comparisons. Integers have add, sub, mul, maximum and minimum,
// which wrap around. Gradients:
//   div      da = dy / b, db = -dy * y / b
//   pow      da = dy * b * a^(b-1), db = dy * a^b * ln a
//   maximum, minimum: dy to the operand that won, half to each in a tie
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/shared/host_device.h"
#include "kernels/shared/op_codes.h"

namespace balora {

template <int Op, typename A>
BALORA_HOST_DEVICE A binary_value(A a, A b) {
  if constexpr (std::is_integral_v<A>) {
    using U = std::make_unsigned_t<A>;
    if constexpr (Op == BALORA_ADD) return static_cast<A>(static_cast<U>(a) + static_cast<U>(b));
    if constexpr (Op == BALORA_SUB) return static_cast<A>(static_cast<U>(a) - static_cast<U>(b));
    if constexpr (Op == BALORA_MUL) return static_cast<A>(static_cast<U>(a) * static_cast<U>(b));
  } else {
    if constexpr (Op == BALORA_ADD) return a + b;
    if constexpr (Op == BALORA_SUB) return a - b;
    if constexpr (Op == BALORA_MUL) return a * b;
    if constexpr (Op == BALORA_DIV) return a / b;
    if constexpr (Op == BALORA_POW) return std::pow(a, b);
  }
  // A NaN on either side wins.
  if constexpr (Op == BALORA_MAXIMUM) return a > b || a != a ? a : b;
  if constexpr (Op == BALORA_MINIMUM) return a < b || a != a ? a : b;
}

template <typename A>
BALORA_HOST_DEVICE void binary_gradients(int32_t op, A dy, A a, A b, A& da, A& db) {
  if (op == BALORA_DIV) {
    da = dy / b;
    db = -dy * (a / b) / b;
  } else if (op == BALORA_POW) {
    da = b == A(0) ? A(0) : dy * b * std::pow(a, b - A(1));
    db = a == A(0) && b >= A(0) ? A(0) : dy * std::pow(a, b) * std::log(a);
  } else {
    const bool a_wins = op == BALORA_MAXIMUM ? a > b : a < b;
    da = a == b ? dy / A(2) : a_wins ? dy : A(0);
    db = a == b ? dy / A(2) : a_wins ? A(0) : dy;
  }
}

// IEEE: a NaN equals nothing.
template <typename A>
BALORA_HOST_DEVICE bool comparison(int32_t op, A a, A b) {
  switch (op) {
    case BALORA_EQUAL:
      return a == b;
    case BALORA_NOT_EQUAL:
      return a != b;
    case BALORA_LESS:
      return a < b;
    case BALORA_LESS_EQUAL:
      return a <= b;
    case BALORA_GREATER:
      return a > b;
    default:
      return a >= b;
  }
}

}  // namespace balora
