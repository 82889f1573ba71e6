// Running sums over the threads of a block.
#pragma once
#include "runtime/common.cuh"

namespace balora::cuda {

// Every lane gets the sum of the values of the lanes up to and with itself.
__device__ inline int32_t warp_scan(int32_t value) {
  const int lane = threadIdx.x % kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int32_t before = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += before;
  }
  return value;
}

// Every thread of a one-dimensional block (a multiple of 32 threads) gets the sum of the values of
// the threads before it, and of all in `total`. `scratch` has 33 elements in shared memory and may
// be used again at once.
__device__ inline int32_t block_scan(int32_t value, int32_t* scratch, int32_t& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  const int32_t inclusive = warp_scan(value);
  if (lane == kWarp - 1) scratch[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    const int32_t mine = lane < warps ? scratch[lane] : 0;
    const int32_t sum = warp_scan(mine);
    scratch[lane] = sum - mine;
    if (lane == kWarp - 1) scratch[kWarp] = sum;
  }
  __syncthreads();
  const int32_t before = scratch[warp] + inclusive - value;
  total = scratch[kWarp];
  __syncthreads();  // the next use of scratch waits for every reader
  return before;
}

}  // namespace balora::cuda
