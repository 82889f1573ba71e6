// Planted faults of barriers and shuffles.
#include "support.h"

namespace planted {
namespace {

__global__ void wait_apart(float* y, bool broken) {
  if (broken) {
    if (threadIdx.x < 16) __syncthreads();
  }
  y[threadIdx.x] = 1;
  __syncthreads();
}

__global__ void wait_or_shuffle(float* y, bool broken) {
  const float value = static_cast<float>(threadIdx.x);
  if (broken && threadIdx.x == 3) {
    __syncthreads();
    y[threadIdx.x] = 0;
  } else {
    y[threadIdx.x] = broken ? __shfl_xor_sync(kAllLanes, value, 1) : value;
    __syncthreads();
  }
}

__global__ void sum_of_some(float* y, int there) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane >= there) return;
  y[lane] = __shfl_xor_sync(kAllLanes, static_cast<float>(lane), 16);
}

__global__ void shuffle_without_self(float* y, unsigned mask) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) y[lane] = __shfl_sync(mask, static_cast<float>(lane), 0);
}

__global__ void sum_of_warp(float* y) {
  const float sum = warp_reduce(1.0f);
  y[threadIdx.x] = sum;
}

}  // namespace

std::string barrier_not_for_all(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(64)}, wait_apart, device.array<float>(64), broken);
}

std::string barrier_and_shuffle(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(32)}, wait_or_shuffle, device.array<float>(32), broken);
}

std::string shuffle_lanes_missing(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(32)}, sum_of_some, device.array<float>(32), broken ? 20 : 32);
}

std::string shuffle_mask_without_self(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(32)}, shuffle_without_self, device.array<float>(32),
                    broken ? 0x7fffu : 0xffffu);
}

std::string shuffle_in_a_small_block(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(broken ? 20 : 64)}, sum_of_warp, device.array<float>(64));
}

}  // namespace planted
