// Comparisons (u8 results, 1 where true), where, and the finiteness tests. Comparisons follow IEEE:
// a NaN equals nothing.
#include <atomic>
#include <cmath>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/strided.h"
#include "kernels/shared/elementwise_math.h"

namespace balora {
namespace {

template <int Op, typename T>
void compare_row(const T* a, int64_t a_step, const T* b, int64_t b_step, uint8_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto x = load_any(a[i * a_step]), z = load_any(b[i * b_step]);
    y[i] = comparison(Op, x, z) ? 1 : 0;
  }
}

template <typename T>
BALORA_INLINE void mark_finite(const T* x, uint8_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::isfinite(load(x[i])) ? 1 : 0;
}

}  // namespace

int32_t compare_kernel(Context* ctx, const balora_compare& o) {
  const LoopPlan<3> plan = plan_loops<3>({o.a, o.b, o.y});
  dispatch_any(o.a->dtype, [&]<typename T>() {
    for_each_row<3>(ctx, plan, [&](const std::array<int64_t, 3>& at, int64_t n) {
      const auto& step = plan.row_stride();
      const T* x = data_of<T>(o.a) + at[0];
      const T* z = data_of<T>(o.b) + at[1];
      uint8_t* out = data_of<uint8_t>(o.y) + at[2];
      dispatch_op<BALORA_EQUAL, BALORA_NOT_EQUAL, BALORA_LESS, BALORA_LESS_EQUAL, BALORA_GREATER,
                  BALORA_GREATER_EQUAL>(
          o.op, [&]<int Op>() { compare_row<Op>(x, step[0], z, step[1], out, n); });
    });
  });
  return 0;
}

int32_t where_kernel(Context* ctx, const balora_where& o) {
  // A null operand is zero; y takes its place in the plan.
  const LoopPlan<4> plan = plan_loops<4>({o.condition, o.a ? o.a : o.y, o.b ? o.b : o.y, o.y});
  dispatch_any(o.y->dtype, [&]<typename T>() {
    for_each_row<4>(ctx, plan, [&](const std::array<int64_t, 4>& at, int64_t n) {
      const auto& step = plan.row_stride();
      const uint8_t* choose = data_of<uint8_t>(o.condition) + at[0];
      const T* x = o.a ? data_of<T>(o.a) + at[1] : nullptr;
      const T* z = o.b ? data_of<T>(o.b) + at[2] : nullptr;
      T* out = data_of<T>(o.y) + at[3];
      for (int64_t i = 0; i < n; ++i) {
        const T* from =
            choose[i * step[0]] ? (x ? x + i * step[1] : nullptr) : (z ? z + i * step[2] : nullptr);
        out[i] = from ? *from : T{};
      }
    });
  });
  return 0;
}

int32_t is_finite_kernel(Context* ctx, const balora_is_finite& o) {
  dispatch_float(o.x->dtype, [&]<typename T>() {
    parallel_for(ctx, view_numel(*o.x), 1 << 14, [&](int64_t begin, int64_t end) {
      at_level<&mark_finite<T>>(data_of<T>(o.x) + begin, data_of<uint8_t>(o.y) + begin,
                                end - begin);
    });
  });
  return 0;
}

}  // namespace balora
