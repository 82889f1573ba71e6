// Communication between the threads of a block: its memory, and reductions over a warp or a
// block. BALORA_SHARED and SharedMemory are the only ways to shared memory: the emulated device
// watches it.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "device/instructions.cuh"

namespace balora::cuda {

constexpr int kWarp = 32;

// BALORA_SHARED(float, partial, 32): an array of the block with a size known at compile time.
#if BALORA_EMULATED
#define BALORA_SHARED(type, name, count) \
  static const char name##_key = 0;      \
  type* const name = static_cast<type*>( \
      emulator::static_shared(&name##_key, sizeof(type) * (count), {__FILE__, __LINE__}))
#else
#define BALORA_SHARED(type, name, count) __shared__ type name[count]
#endif

// Bytes that array<T>(count) takes, for Grid::shared_bytes.
template <typename T>
__host__ __device__ constexpr int64_t shared_bytes(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(T)) + 127) / 128 * 128;
}

// Hands out the dynamic shared memory of a block, array by array; every thread asks for the same.
class SharedMemory {
 public:
#if BALORA_EMULATED
  template <typename T>
  T* array(int64_t count) {
    return static_cast<T*>(emulator::dynamic_array(next_, static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  emulator::SharedCursor next_;
#else
  __device__ SharedMemory() {
    extern __shared__ __align__(128) unsigned char balora_dynamic_shared[];
    next_ = balora_dynamic_shared;
  }
  template <typename T>
  __device__ T* array(int64_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += shared_bytes<T>(count);
    return array;
  }

 private:
  unsigned char* next_;
#endif
};

// ---- Reductions: the order of additions depends on the shape of the block only ------------------

constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Max {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a > b || a != a ? a : b;  // a NaN stays
  }
};

// Every lane gets the result.
template <typename A, typename Op = Sum>
__device__ inline A warp_reduce(A value, Op op = {}) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// Every thread of a one-dimensional block (a multiple of 32 threads) gets the result. `scratch` has
// 33 elements in shared memory and may be used again at once.
template <typename A, typename Op = Sum>
__device__ inline A block_reduce(A value, A identity, A* scratch, Op op = {}) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  value = warp_reduce(value, op);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  if (warp == 0) {
    A total = warp_reduce(lane < warps ? scratch[lane] : identity, op);
    if (lane == 0) scratch[kWarp] = total;
  }
  __syncthreads();
  const A total = scratch[kWarp];
  __syncthreads();  // the next use of scratch waits for every reader
  return total;
}

}  // namespace balora::cuda
