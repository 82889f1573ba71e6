// Elementwise functions of one contiguous operand and their gradients; kernels/shared/unary.h has
// the formulas.
#include <numbers>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/unary.h"

namespace balora {
namespace {

constexpr int64_t kGrain = 1 << 13;

// The formulas of kernels/shared/unary.h, but for the rounding of gelu_tanh, whose argument is
// x + 0.044715 x^3 here and x * (1 + 0.044715 x^2) there, and of gelu's density in f64: results of
// models that use them stay as they were, to the bit.
template <typename A>
BALORA_INLINE A gelu_tanh_of(A x) {
  return vtanh(kGeluTanhScale<A> * (x + kGeluTanhCubic<A> * x * x * x));
}

template <int Op, typename A>
BALORA_INLINE A value_of(A x, A a, A b) {
  if constexpr (Op == BALORA_GELU_TANH) return A(0.5) * x * (A(1) + gelu_tanh_of(x));
  return unary_value<Op, VectorMath>(x, a, b);
}

template <int Op, typename A>
BALORA_INLINE A slope_of(A s, A a, A b) {
  if constexpr (Op == BALORA_GELU) {
    constexpr A kDensity = static_cast<A>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
    return normal_cdf<VectorMath>(s) + s * kDensity * vexp(A(-0.5) * s * s);
  }
  if constexpr (Op == BALORA_GELU_TANH) {
    const A t = gelu_tanh_of(s);
    const A inner = kGeluTanhScale<A> * (A(1) + A(3) * kGeluTanhCubic<A> * s * s);
    return A(0.5) * (A(1) + t) + A(0.5) * s * (A(1) - t * t) * inner;
  }
  return unary_slope<Op, VectorMath>(s, a, b);
}

template <int Op, typename T>
BALORA_INLINE void forward_loop(const T* x, T* y, int64_t n, Acc<T> a, Acc<T> b) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(value_of<Op>(load(x[i]), a, b));
}

template <int Op, typename T>
BALORA_INLINE void backward_loop(const T* dy, const T* s, T* dx, int64_t n, Acc<T> a, Acc<T> b) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = store<T>(load(dy[i]) * slope_of<Op>(load(s[i]), a, b));
}

#define FORWARD(OP) \
  case OP:          \
    return forward_loop<OP>(x, y, n, a, b);
#define BACKWARD(OP) \
  case OP:           \
    return backward_loop<OP>(dy, s, dx, n, a, b);
#define ROW(T)                                                                           \
  BALORA_SIMD void forward(int op, const T* x, T* y, int64_t n, Acc<T> a, Acc<T> b) {    \
    switch (op) { BALORA_EACH_UNARY_OP(FORWARD) }                                        \
  }                                                                                      \
  BALORA_SIMD void backward(int op, const T* dy, const T* s, T* dx, int64_t n, Acc<T> a, \
                            Acc<T> b) {                                                  \
    switch (op) { BALORA_EACH_UNARY_OP(BACKWARD) }                                       \
  }
ROW(float)
ROW(bf16)
ROW(f16)
ROW(double)
#undef ROW
#undef FORWARD
#undef BACKWARD

}  // namespace

int32_t unary_kernel(Context* ctx, const balora_unary& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    parallel_for(ctx, view_numel(*o.x), kGrain, [&](int64_t begin, int64_t end) {
      forward(o.op, data_of<T>(o.x) + begin, data_of<T>(o.y) + begin, end - begin,
              static_cast<Acc<T>>(o.a), static_cast<Acc<T>>(o.b));
    });
  });
  return 0;
}

int32_t unary_backward_kernel(Context* ctx, const balora_unary_backward& o) {
  dispatch_float(o.dy->dtype, [&]<typename T>() {
    parallel_for(ctx, view_numel(*o.dy), kGrain, [&](int64_t begin, int64_t end) {
      backward(o.op, data_of<T>(o.dy) + begin, data_of<T>(o.saved) + begin,
               data_of<T>(o.dx) + begin, end - begin, static_cast<Acc<T>>(o.a),
               static_cast<Acc<T>>(o.b));
    });
  });
  return 0;
}

}  // namespace balora
