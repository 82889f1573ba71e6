// Elementwise functions of one contiguous operand and their gradients; kernels/shared/unary.h has
// the formulas.
#include "kernels/shared/unary.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/vec_math.h"

namespace balora {
namespace {

constexpr int64_t kGrain = 1 << 13;

template <int Op, typename T>
BALORA_INLINE void forward_loop(const T* x, T* y, int64_t n, Acc<T> a, Acc<T> b) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(unary_value<Op, VectorMath>(load(x[i]), a, b));
}

template <int Op, typename T>
BALORA_INLINE void backward_loop(const T* dy, const T* s, T* dx, int64_t n, Acc<T> a, Acc<T> b) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    dx[i] = store<T>(load(dy[i]) * unary_slope<Op, VectorMath>(load(s[i]), a, b));
  }
}

#define FORWARD(OP) \
  case OP:          \
    return forward_loop<OP>(x, y, n, a, b);
#define BACKWARD(OP) \
  case OP:           \
    return backward_loop<OP>(dy, s, dx, n, a, b);
template <typename T>
BALORA_INLINE void forward(int op, const T* x, T* y, int64_t n, Acc<T> a, Acc<T> b) {
  switch (op) { BALORA_EACH_UNARY_OP(FORWARD) }
}

template <typename T>
BALORA_INLINE void backward(int op, const T* dy, const T* s, T* dx, int64_t n, Acc<T> a, Acc<T> b) {
  switch (op) { BALORA_EACH_UNARY_OP(BACKWARD) }
}
#undef FORWARD
#undef BACKWARD

}  // namespace

int32_t unary_kernel(Context* ctx, const balora_unary& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    parallel_for(ctx, view_numel(*o.x), kGrain, [&](int64_t begin, int64_t end) {
      at_level<&forward<T>>(o.op, data_of<T>(o.x) + begin, data_of<T>(o.y) + begin, end - begin,
                            static_cast<Acc<T>>(o.a), static_cast<Acc<T>>(o.b));
    });
  });
  return 0;
}

int32_t unary_backward_kernel(Context* ctx, const balora_unary_backward& o) {
  dispatch_float(o.dy->dtype, [&]<typename T>() {
    parallel_for(ctx, view_numel(*o.dy), kGrain, [&](int64_t begin, int64_t end) {
      at_level<&backward<T>>(o.op, data_of<T>(o.dy) + begin, data_of<T>(o.saved) + begin,
                             data_of<T>(o.dx) + begin, end - begin, static_cast<Acc<T>>(o.a),
                             static_cast<Acc<T>>(o.b));
    });
  });
  return 0;
}

}  // namespace balora
