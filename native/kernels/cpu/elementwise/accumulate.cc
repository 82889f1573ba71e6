// Sums of gradients and the finiteness check: one read of each operand.
#include <atomic>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int64_t kElementGrain = 1 << 14;

template <typename S, typename D>
BALORA_INLINE void accumulate_range(const S* source, D* destination, int64_t begin, int64_t end,
                                    Acc<D> beta) {
  if (beta == Acc<D>(0)) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      destination[i] = store<D>(static_cast<Acc<D>>(load(source[i])));
    }
    return;
  }
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    destination[i] = store<D>(beta * load(destination[i]) + static_cast<Acc<D>>(load(source[i])));
  }
}

template <typename T>
BALORA_INLINE bool finite_range(const T* x, int64_t begin, int64_t end) {
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = begin; i < end; ++i) {
    const Acc<T> value = load(x[i]);
    bad |= !(value - value == Acc<T>(0));  // NaN less NaN and infinity less infinity are NaN
  }
  return bad == 0;
}

}  // namespace

int32_t accumulate_kernel(Context* ctx, const balora_accumulate& o) {
  const int64_t n = view_numel(*o.destination);
  dispatch_float(o.destination->dtype, [&]<typename D>() {
    dispatch_float(o.source->dtype, [&]<typename S>() {
      parallel_for(ctx, n, kElementGrain, [&](int64_t begin, int64_t end) {
        at_level<&accumulate_range<S, D>>(data_of<S>(o.source), data_of<D>(o.destination), begin,
                                          end, static_cast<Acc<D>>(o.beta));
      });
    });
  });
  return 0;
}

int32_t check_finite_kernel(Context* ctx, const balora_check_finite& o) {
  if (!view_contiguous(*o.x)) throw UnsupportedError("check_finite: the view must be contiguous");
  std::atomic<bool> all{true};
  dispatch_float(o.x->dtype, [&]<typename T>() {
    parallel_for(ctx, view_numel(*o.x), kElementGrain, [&](int64_t begin, int64_t end) {
      if (!finite_range(data_of<T>(o.x), begin, end)) all = false;
    });
  });
  *o.finite = all ? 1 : 0;
  return 0;
}

}  // namespace balora
