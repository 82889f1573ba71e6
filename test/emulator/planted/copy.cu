// Planted faults of cp_async and ldmatrix.
#include "support.h"

namespace planted {
namespace {

constexpr int kThreads = 64;

__global__ void stage(float* y, const float* x, bool broken) {
  BALORA_SHARED(float, values, 4 * kThreads);
  const int i = static_cast<int>(threadIdx.x);
  cp_async16(values + 4 * i, x + 4 * i);
  cp_async_commit();
  if (!broken) cp_async_wait<0>();
  __syncthreads();
  y[i] = values[4 * (kThreads - 1 - i)];
}

// Fills a half of the buffer for the next step while this step reads the other.
__global__ void stage_twice(float* y, const float* x, bool broken) {
  BALORA_SHARED(float, values, 8 * kThreads);
  const int i = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int step) {
    cp_async16(values + 4 * (step % 2 * kThreads + i), x + 4 * i);
    cp_async_commit();
  };
  fetch(0);
  for (int step = 0; step < 3; ++step) {
    if (broken) fetch(step + 1);  // before everyone has done with what it overwrites
    if (broken) cp_async_wait<1>();
    if (!broken) cp_async_wait<0>();
    __syncthreads();
    if (!broken) fetch(step + 1);
    y[i] = values[4 * (step % 2 * kThreads + kThreads - 1 - i)];
  }
  cp_async_wait<0>();
}

__global__ void stage_shifted(float* y, const float* x, int shift) {
  BALORA_SHARED(float, values, 4 * kThreads + 4);
  const int i = static_cast<int>(threadIdx.x);
  cp_async16(values + 4 * i + shift, x + 4 * i);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  y[i] = values[4 * (kThreads - 1 - i) + shift];
}

__global__ void load_matrices(uint32_t* y, const uint32_t* x, bool broken) {
  BALORA_SHARED(uint32_t, values, 128);
  const int i = static_cast<int>(threadIdx.x);
  for (int k = i; k < 128; k += kWarp) values[k] = x[k];
  __syncwarp();
  uint32_t out[4];
  ldmatrix_x4(out, (broken ? x : values) + 4 * i);
  y[i] = out[0];
}

std::string on_array(void (*kernel)(float*, const float*, bool), bool broken) {
  Device device;
  float* y = device.array<float>(kThreads);
  return device.run({dim3(1), dim3(kThreads)}, kernel, y,
                    device.upload(std::vector<float>(4 * kThreads, 1.0f)), broken);
}

}  // namespace

std::string missing_copy_wait(bool broken) {
  return on_array(stage, broken);
}

std::string copy_over_what_is_read(bool broken) {
  return on_array(stage_twice, broken);
}

std::string misaligned_copy(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads)}, stage_shifted, device.array<float>(kThreads),
                    device.upload(std::vector<float>(4 * kThreads, 1.0f)), broken ? 1 : 4);
}

std::string matrix_from_global(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(32)}, load_matrices, device.array<uint32_t>(32),
                    device.upload(std::vector<uint32_t>(128, 1u)), broken);
}

}  // namespace planted
