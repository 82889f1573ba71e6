// fill and arange: constants and counters.
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/strided.h"

namespace balora {
namespace {

template <typename T>
T element(double value) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(value);
  } else {
    return store<T>(static_cast<Acc<T>>(value));
  }
}

}  // namespace

int32_t fill_kernel(Context* ctx, const balora_fill& o) {
  const LoopPlan<1> plan = plan_loops<1>({o.y});
  dispatch_any(o.y->dtype, [&]<typename T>() {
    const T constant = element<T>(o.value);
    T* data = data_of<T>(o.y);
    const int64_t step = plan.row_stride()[0];
    for_each_row<1>(ctx, plan, [&](const std::array<int64_t, 1>& at, int64_t n) {
      T* row = data + at[0];
      if (step == 1) {
        std::fill_n(row, n, constant);
      } else {
        for (int64_t i = 0; i < n; ++i) row[i * step] = constant;
      }
    });
  });
  return 0;
}

int32_t arange_kernel(Context* ctx, const balora_arange& o) {
  dispatch_any(o.y->dtype, [&]<typename T>() {
    T* data = data_of<T>(o.y);
    parallel_for(ctx, view_numel(*o.y), 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        data[i] = element<T>(o.start + static_cast<double>(i) * o.step);
      }
    });
  });
  return 0;
}

}  // namespace balora
