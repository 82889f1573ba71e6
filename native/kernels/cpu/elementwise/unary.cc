// Elementwise functions of one contiguous operand and their gradients. Where the gradient is
// cheapest from the result (exp, sqrt, rsqrt, tanh, sigmoid, relu) `saved` is the result, otherwise
// it is the operand; saves_result() in ops/elementwise/unary.cc says which. a and b are the two
// parameters of clamp (low, high) and affine (a*x + b).
//   gelu x*Phi(x); gelu_tanh x/2*(1 + tanh(sqrt(2/pi)*(x + 0.044715 x^3))) (Hendrycks and Gimpel,
//   2016)
#include <cmath>
#include <numbers>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/op_codes.h"

namespace balora {
namespace {

constexpr int64_t kGrain = 1 << 13;

template <typename A>
constexpr A kGeluScale = static_cast<A>(0.79788456080286535588);  // sqrt(2 / pi)
template <typename A>
constexpr A kGeluCubic = static_cast<A>(0.044715);

template <typename A>
BALORA_INLINE A normal_cdf(A x) {
  return A(0.5) * (A(1) + verf(x * static_cast<A>(std::numbers::sqrt2 / 2)));
}

template <int Op, typename A>
BALORA_INLINE A value_of(A x, A a, A b) {
  if constexpr (Op == BALORA_NEG) return -x;
  if constexpr (Op == BALORA_ABS) return std::abs(x);
  if constexpr (Op == BALORA_EXP) return vexp(x);
  if constexpr (Op == BALORA_LOG) return vlog(x);
  if constexpr (Op == BALORA_SQRT) return std::sqrt(x);
  if constexpr (Op == BALORA_RSQRT) return A(1) / std::sqrt(x);
  if constexpr (Op == BALORA_SQUARE) return x * x;
  if constexpr (Op == BALORA_SIN) return std::sin(x);
  if constexpr (Op == BALORA_COS) return std::cos(x);
  if constexpr (Op == BALORA_TANH) return vtanh(x);
  if constexpr (Op == BALORA_SIGMOID) return vsigmoid(x);
  if constexpr (Op == BALORA_RELU) return x < A(0) ? A(0) : x;
  if constexpr (Op == BALORA_SILU) return x * vsigmoid(x);
  if constexpr (Op == BALORA_GELU) return x * normal_cdf(x);
  if constexpr (Op == BALORA_GELU_TANH) {
    return A(0.5) * x * (A(1) + vtanh(kGeluScale<A> * (x + kGeluCubic<A> * x * x * x)));
  }
  if constexpr (Op == BALORA_SOFTPLUS) return vsoftplus(x);
  if constexpr (Op == BALORA_CLAMP) return x < a ? a : x > b ? b : x;
  if constexpr (Op == BALORA_AFFINE) return a * x + b;
}

// d value / d x; s is the saved operand or result.
template <int Op, typename A>
BALORA_INLINE A slope_of(A s, A a, A b) {
  if constexpr (Op == BALORA_NEG) return A(-1);
  if constexpr (Op == BALORA_ABS) return s > A(0) ? A(1) : s < A(0) ? A(-1) : A(0);
  if constexpr (Op == BALORA_EXP) return s;
  if constexpr (Op == BALORA_LOG) return A(1) / s;
  if constexpr (Op == BALORA_SQRT) return A(0.5) / s;
  if constexpr (Op == BALORA_RSQRT) return A(-0.5) * s * s * s;
  if constexpr (Op == BALORA_SQUARE) return A(2) * s;
  if constexpr (Op == BALORA_SIN) return std::cos(s);
  if constexpr (Op == BALORA_COS) return -std::sin(s);
  if constexpr (Op == BALORA_TANH) return A(1) - s * s;
  if constexpr (Op == BALORA_SIGMOID) return s * (A(1) - s);
  if constexpr (Op == BALORA_RELU) return s > A(0) ? A(1) : A(0);
  if constexpr (Op == BALORA_SILU) {
    const A sigmoid = vsigmoid(s);
    return sigmoid * (A(1) + s * (A(1) - sigmoid));
  }
  if constexpr (Op == BALORA_GELU) {
    constexpr A kDensity = static_cast<A>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
    return normal_cdf(s) + s * kDensity * vexp(A(-0.5) * s * s);
  }
  if constexpr (Op == BALORA_GELU_TANH) {
    const A t = vtanh(kGeluScale<A> * (s + kGeluCubic<A> * s * s * s));
    const A inner = kGeluScale<A> * (A(1) + A(3) * kGeluCubic<A> * s * s);
    return A(0.5) * (A(1) + t) + A(0.5) * s * (A(1) - t * t) * inner;
  }
  if constexpr (Op == BALORA_SOFTPLUS) return vsigmoid(s);
  if constexpr (Op == BALORA_CLAMP) return s >= a && s <= b ? A(1) : A(0);
  if constexpr (Op == BALORA_AFFINE) return a;
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
