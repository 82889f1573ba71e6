// The CUDA run-time library as far as cuda/ uses it, for the emulated device: kernels are plain
// functions run by fibres on the host (emulator.h), device memory is host memory in an arena of its
// own. Found in place of the toolkit's header of the same name.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __restrict__ __restrict

#define CUDART_VERSION 13000

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
constexpr cudaError_t cudaErrorMemoryAllocation = 2;
constexpr cudaError_t cudaErrorInvalidConfiguration = 9;
constexpr cudaError_t cudaErrorInvalidDeviceFunction = 98;
constexpr cudaError_t cudaErrorNoDevice = 100;
constexpr cudaError_t cudaErrorInvalidDevice = 101;
constexpr cudaError_t cudaErrorNoKernelImageForDevice = 209;
constexpr cudaError_t cudaErrorNotReady = 600;
constexpr cudaError_t cudaErrorLaunchOutOfResources = 701;
constexpr cudaError_t cudaErrorLaunchFailure = 719;
constexpr cudaError_t cudaErrorStreamCaptureUnsupported = 900;
constexpr cudaError_t cudaErrorStreamCaptureInvalidated = 901;
using cudaStream_t = emulator::Stream*;
using cudaEvent_t = emulator::Event*;
using cudaGraph_t = emulator::Graph*;
using cudaGraphExec_t = emulator::Graph*;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventBlockingSync = 1;
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocMapped = 2;
constexpr unsigned cudaHostAllocPortable = 1;

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor;
  int multiProcessorCount;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

// ---- What a kernel sees -------------------------------------------------------------------------

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

inline void __syncthreads(BALORA_HERE) {
  emulator::block_barrier({file, line});
}
inline int __syncthreads_or(int predicate, BALORA_HERE) {
  return emulator::block_count(predicate, {file, line}) != 0;
}
inline int __syncthreads_count(int predicate, BALORA_HERE) {
  return emulator::block_count(predicate, {file, line});
}
BALORA_UNCHECKED inline void __syncwarp(unsigned mask = 0xffffffffu, BALORA_HERE) {
  emulator::meet(emulator::Meeting::kBarrier, mask, nullptr, 0, {file, line});
}
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, BALORA_HERE) {
  const int self = emulator::lane();
  return emulator::exchange(mask, value, (self & ~(width - 1)) | (lane & (width - 1)),
                            {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, BALORA_HERE) {
  const int self = emulator::lane(), other = self ^ with;
  return emulator::exchange(
      mask, value, (other & ~(width - 1)) == (self & ~(width - 1)) ? other : self, {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, BALORA_HERE) {
  const int self = emulator::lane(), other = self + static_cast<int>(by);
  return emulator::exchange(mask, value, other / width == self / width ? other : self,
                            {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, BALORA_HERE) {
  const int self = emulator::lane(), other = self - static_cast<int>(by);
  return emulator::exchange(mask, value, other >= 0 && other / width == self / width ? other : self,
                            {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, BALORA_HERE) {
  return emulator::ballot(mask, predicate, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, BALORA_HERE) {
  return emulator::ballot(mask, predicate, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, BALORA_HERE) {
  return emulator::ballot(mask, !predicate, {file, line}) == 0;
}
inline int __popc(unsigned value) {
  return __builtin_popcount(value);
}
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}

template <typename T>
T atomicAdd(T* at, T value) {
  return emulator::atomic(at, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* at, T value) {
  return emulator::atomic(at, [&](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicMin(T* at, T value) {
  return emulator::atomic(at, [&](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicOr(T* at, T value) {
  return emulator::atomic(at, [&](T old) { return old | value; });
}
template <typename T>
T atomicExch(T* at, T value) {
  return emulator::atomic(at, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* at, T expected, T value) {
  return emulator::atomic(at, [&](T old) { return old == expected ? value : old; });
}

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __expf(float x) {
  return std::exp(x);
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
}
template <typename T>
T __ldg(const T* at) {
  return *at;
}
using std::max;
using std::min;
