// Elementwise ops on two strided views of one (broadcast) shape. Same shape and broadcast scalar or
// row have loops without index arithmetic. kernels/shared/elementwise_math.h has the formulas.
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/strided.h"
#include "kernels/shared/elementwise_math.h"

namespace balora {
namespace {

template <int Op, typename T>
BALORA_INLINE void loop(const T* a, int64_t a_step, const T* b, int64_t b_step, T* y, int64_t n) {
  if (a_step == 1 && b_step == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      y[i] = store_any<T>(binary_value<Op>(load_any(a[i]), load_any(b[i])));
  } else if (a_step == 1 && b_step == 0) {
    const auto scalar = load_any(*b);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store_any<T>(binary_value<Op>(load_any(a[i]), scalar));
  } else if (a_step == 0 && b_step == 1) {
    const auto scalar = load_any(*a);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store_any<T>(binary_value<Op>(scalar, load_any(b[i])));
  } else {
    for (int64_t i = 0; i < n; ++i) {
      y[i] = store_any<T>(binary_value<Op>(load_any(a[i * a_step]), load_any(b[i * b_step])));
    }
  }
}

template <int Op, typename T>
void gradient_loop(const T* dy, const T* a, const T* b, T* da, T* db,
                   const std::array<int64_t, 5>& step, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    Acc<T> to_a, to_b;
    binary_gradients<Acc<T>>(Op, load(dy[i * step[0]]), load(a[i * step[1]]), load(b[i * step[2]]),
                             to_a, to_b);
    if (da) da[i] = store<T>(to_a);
    if (db) db[i] = store<T>(to_b);
  }
}

}  // namespace

int32_t binary_kernel(Context* ctx, const balora_binary& o) {
  const LoopPlan<3> plan = plan_loops<3>({o.a, o.b, o.y});
  dispatch_any(o.y->dtype, [&]<typename T>() {
    if constexpr (std::is_same_v<T, uint8_t>) {
      throw UnsupportedError("u8 has no arithmetic");
    } else {
      for_each_row<3>(ctx, plan, [&](const std::array<int64_t, 3>& at, int64_t n) {
        const auto& step = plan.row_stride();
        dispatch_op<BALORA_ADD, BALORA_SUB, BALORA_MUL, BALORA_MAXIMUM, BALORA_MINIMUM, BALORA_DIV,
                    BALORA_POW>(o.op, [&]<int Op>() {
          if constexpr (!std::is_integral_v<T> || (Op != BALORA_DIV && Op != BALORA_POW)) {
            at_level<&loop<Op, T>>(data_of<T>(o.a) + at[0], step[0], data_of<T>(o.b) + at[1],
                                   step[1], data_of<T>(o.y) + at[2], n);
          }
        });
      });
    }
  });
  return 0;
}

int32_t binary_backward_kernel(Context* ctx, const balora_binary_backward& o) {
  // The other output takes the place of an unwanted one in the plan: both are contiguous, of
  // one shape.
  const View* any = o.da ? o.da : o.db;
  if (!any) return 0;
  const LoopPlan<5> plan = plan_loops<5>({o.dy, o.a, o.b, o.da ? o.da : any, o.db ? o.db : any});
  dispatch_float(any->dtype, [&]<typename T>() {
    for_each_row<5>(ctx, plan, [&](const std::array<int64_t, 5>& at, int64_t n) {
      const T* g = data_of<T>(o.dy) + at[0];
      const T* x = data_of<T>(o.a) + at[1];
      const T* z = data_of<T>(o.b) + at[2];
      T* dx = o.da ? data_of<T>(o.da) + at[3] : nullptr;
      T* dz = o.db ? data_of<T>(o.db) + at[4] : nullptr;
      const auto& step = plan.row_stride();
      dispatch_op<BALORA_DIV, BALORA_POW, BALORA_MAXIMUM, BALORA_MINIMUM>(
          o.op, [&]<int Op>() { gradient_loop<Op>(g, x, z, dx, dz, step, n); });
    });
  });
  return 0;
}

}  // namespace balora
