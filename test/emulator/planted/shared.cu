// Planted faults in shared memory: bounds, reads of what was never written, races in a block.
#include "support.h"

namespace planted {
namespace {

constexpr int kThreads = 64;

__global__ void rotate(float* y, int shift) {
  BALORA_SHARED(float, values, kThreads);
  BALORA_SHARED(float, others, kThreads);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = others[i] = static_cast<float>(i);
  __syncthreads();
  y[i] = values[i + shift];
}

__global__ void rotate_dynamic(float* y, int shift) {
  SharedMemory shared;
  float* values = shared.array<float>(kThreads);
  float* others = shared.array<float>(kThreads);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = others[i] = static_cast<float>(i);
  __syncthreads();
  y[i] = values[i + shift];
}

__global__ void write_some(float* y, int written) {
  BALORA_SHARED(float, values, kThreads);
  const int i = static_cast<int>(threadIdx.x);
  if (i < written) values[i] = 1;
  __syncthreads();
  y[i] = values[i];
}

__global__ void turn_around(float* y, bool broken) {
  BALORA_SHARED(float, values, kThreads);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = static_cast<float>(i);
  if (!broken) __syncthreads();
  y[i] = values[kThreads - 1 - i];
}

// The second pass writes what the first still reads.
__global__ void turn_around_twice(float* y, bool broken) {
  BALORA_SHARED(float, values, kThreads);
  const int i = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int pass = 0; pass < 2; ++pass) {
    values[i] = static_cast<float>(i);
    __syncthreads();
    sum += values[kThreads - 1 - i];
    if (!broken) __syncthreads();
  }
  y[i] = sum;
}

__global__ void turn_around_in_warp(float* y, bool broken) {
  BALORA_SHARED(float, values, kThreads);
  const int i = static_cast<int>(threadIdx.x), lane = i % kWarp;
  for (int pass = 0; pass < 2; ++pass) {
    values[i] = static_cast<float>(i);
    if (!broken) __syncwarp();
    y[i] = values[i - lane + kWarp - 1 - lane];
    __syncwarp();
  }
}

__global__ void write_bytes(uint8_t* y, bool broken) {
  BALORA_SHARED(uint8_t, values, kThreads);
  const int i = static_cast<int>(threadIdx.x);
  values[broken && i == 6 ? 5 : i] = 1;
  __syncthreads();
  y[i] = values[i == 6 ? 5 : i];
}

}  // namespace

std::string shared_past_the_end(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads)}, rotate, device.array<float>(kThreads), broken);
}

std::string dynamic_past_the_end(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads), 2 * shared_bytes<float>(kThreads)}, rotate_dynamic,
                    device.array<float>(kThreads), broken);
}

std::string more_shared_than_launched(bool broken) {
  Device device;
  const int64_t bytes = (broken ? 1 : 2) * shared_bytes<float>(kThreads);
  return device.run({dim3(1), dim3(kThreads), bytes}, rotate_dynamic, device.array<float>(kThreads),
                    0);
}

std::string unwritten_shared(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads)}, write_some, device.array<float>(kThreads),
                    broken ? kThreads - 1 : kThreads);
}

std::string missing_syncthreads(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads)}, turn_around, device.array<float>(kThreads), broken);
}

std::string missing_syncthreads_in_loop(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads)}, turn_around_twice, device.array<float>(kThreads),
                    broken);
}

std::string missing_syncwarp(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads)}, turn_around_in_warp, device.array<float>(kThreads),
                    broken);
}

std::string bytes_of_a_word(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(kThreads)}, write_bytes, device.array<uint8_t>(kThreads),
                    broken);
}

}  // namespace planted
