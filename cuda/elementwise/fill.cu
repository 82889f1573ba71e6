// fill and arange: constants and counters. One thread an element, in a grid-stride loop.
#include "runtime/common.cuh"

namespace balora::cuda {
namespace {

template <typename T>
__device__ T element(double value) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(value);
  } else {
    return store<T>(static_cast<Acc<T>>(value));
  }
}

template <typename T>
__global__ void fill_elements(T* y, const __grid_constant__ Strided layout, int64_t n,
                              double value) {
  const T constant = element<T>(value);
  for (int64_t i = thread_index(); i < n; i += thread_count()) y[offset_of(layout, i)] = constant;
}

template <typename T>
__global__ void count_elements(T* y, int64_t n, double start, double step) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    y[i] = element<T>(start + static_cast<double>(i) * step);
  }
}

}  // namespace

int32_t fill_kernel(Context* ctx, const balora_fill& o) {
  const int64_t n = view_numel(*o.y);
  if (n == 0) return 0;
  dispatch_any(o.y->dtype, [&]<typename T>() {
    launch(ctx, "fill", elements(n), fill_elements<T>, data_of<T>(o.y), strided(*o.y), n, o.value);
  });
  return 0;
}

int32_t arange_kernel(Context* ctx, const balora_arange& o) {
  const int64_t n = view_numel(*o.y);
  if (n == 0) return 0;
  dispatch_any(o.y->dtype, [&]<typename T>() {
    launch(ctx, "arange", elements(n), count_elements<T>, data_of<T>(o.y), n, o.start, o.step);
  });
  return 0;
}

}  // namespace balora::cuda
