// Rows of activations in int8 (kernels/operands/linear.h). A block a row; a warp takes 64 columns
// at a time, two a lane, which it rotates by exchanges among its lanes. To quantise, a row is read
// twice, the second time from the caches. Bound by memory: x is read and a byte an element written,
// or the other way round; 2,048 x 4,096 in bf16 are 25 MB, 8 us at 3.35 TB/s.
#include "kernels/shared/int8_rows.h"
#include "kernels/shared/messages.h"
#include "runtime/common.cuh"

namespace balora::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kStep = 2 * kWarp;  // columns of a warp at a time

// The columns of a lane: `low` of the first 32, `high` of the others.
struct Lane {
  float low, high;
};

__device__ inline Lane rotated(Lane v, int64_t rotation) {
  if (rotation == 0) return v;
  BALORA_UNROLL
  for (int bit = 1; bit < kWarp; bit *= 2) {
    const float sign = threadIdx.x & bit ? -1.0F : 1.0F;
    v.low = __shfl_xor_sync(kAllLanes, v.low, bit) + v.low * sign;
    v.high = __shfl_xor_sync(kAllLanes, v.high, bit) + v.high * sign;
  }
  if (rotation == kStep) v = {v.low + v.high, v.low - v.high};
  const float factor = 1 / std::sqrt(static_cast<float>(rotation));
  return {v.low * factor, v.high * factor};
}

struct RowsInInt8 {
  int64_t rows, width, padded_rows, padded_width, rotation;

  explicit RowsInInt8(const View& x)
      : rows(x.shape[0]),
        width(x.shape[1]),
        padded_rows(int8_padded_rows(rows)),
        padded_width(int8_padded_columns(width)),
        rotation(int8_rotation(width)) {}
  Grid grid(int64_t count) const {
    return {dim3(static_cast<unsigned>(std::clamp<int64_t>(count, 1, kMaxBlocks))), dim3(kThreads)};
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantise(const T* x, uint8_t* codes, float* scales, RowsInInt8 task) {
  BALORA_SHARED(float, scratch, kWarp + 1);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t n = blockIdx.x; n < task.padded_rows; n += gridDim.x) {
    const int64_t width = n < task.rows ? task.width : 0;
    const T* const row = x + n * task.width;
    const auto values = [&](int64_t first) {
      const int64_t low = first + lane, high = low + kWarp;
      const Lane v = {low < width ? load(row[low]) : 0, high < width ? load(row[high]) : 0};
      return rotated(v, task.rotation);
    };
    float largest = 0;
    for (int64_t first = warp * kStep; first < width; first += kWarps * kStep) {
      const Lane v = values(first);
      largest = Max{}(largest, Max{}(std::fabs(v.low), std::fabs(v.high)));
    }
    largest = block_reduce(largest, 0.0F, scratch, Max{});
    const bool is_finite = largest - largest == 0;
    const bool scaled = largest >= kInt8LeastScaled && is_finite;
    const float factor = scaled ? kInt8LargestCode / largest : 0;
    if (threadIdx.x == 0) scales[n] = scaled ? largest / kInt8LargestCode : largest - largest;
    for (int64_t first = warp * kStep; first < task.padded_width; first += kWarps * kStep) {
      const Lane v = values(first);
      uint8_t* const to = codes + n * task.padded_width + first + lane;
      to[0] = int8_code(scaled ? v.low * factor : 0);
      to[kWarp] = int8_code(scaled ? v.high * factor : 0);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantise(const uint8_t* codes, const float* scales, T* x, RowsInInt8 task) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t n = blockIdx.x; n < task.rows; n += gridDim.x) {
    const float scale = scales[n];
    const auto value = [scale](uint8_t code) {
      return scale * static_cast<float>(static_cast<int32_t>(code) - kInt8ZeroPoint);
    };
    for (int64_t first = warp * kStep; first < task.width; first += kWarps * kStep) {
      const uint8_t* const from = codes + n * task.padded_width + first + lane;
      const Lane v = rotated({value(from[0]), value(from[kWarp])}, task.rotation);
      const int64_t low = first + lane, high = low + kWarp;
      T* const row = x + n * task.width;
      if (low < task.width) row[low] = store<T>(v.low);
      if (high < task.width) row[high] = store<T>(v.high);
    }
  }
}

// Calls body.template operator()<T>(task) for the types that rows in int8 have; f64 is refused.
template <typename Body>
void with_rows(const View& x, const std::string& refusal, const Body& body) {
  const RowsInInt8 task(x);
  dispatch_float(x.dtype, [&]<typename T>() {
    if constexpr (std::is_same_v<T, double>) {
      throw UnsupportedError(refusal);
    } else {
      body.template operator()<T>(task);
    }
  });
}

}  // namespace

int32_t quantize_rows_kernel(Context* ctx, const balora_quantize_rows& o) {
  with_rows(*o.x, messages::rows_of_f64(), [&]<typename T>(const RowsInInt8& task) {
    launch(ctx, "quantize_rows", task.grid(task.padded_rows), quantise<T>, data_of<T>(o.x),
           data_of<uint8_t>(o.codes), data_of<float>(o.scales), task);
  });
  return 0;
}

int32_t dequantize_rows_kernel(Context* ctx, const balora_dequantize_rows& o) {
  with_rows(*o.x, messages::values_in_f64(), [&]<typename T>(const RowsInInt8& task) {
    launch(ctx, "dequantize_rows", task.grid(task.rows), dequantise<T>, data_of<uint8_t>(o.codes),
           data_of<float>(o.scales), data_of<T>(o.x), task);
  });
  return 0;
}

}  // namespace balora::cuda
