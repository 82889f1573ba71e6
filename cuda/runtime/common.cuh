// The base of every kernel file of the CUDA device: the state of a device, launching, indexing,
// faults, and by its includes element types, shared memory, reductions and instructions. The same
// files compile with the host compiler against test/emulator (a cuda_runtime.h of its own), so:
// launch() starts every kernel, BALORA_SHARED and SharedMemory (block.cuh) are the only ways to
// shared memory, and an instruction that C++ cannot name stands in instructions.cuh.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "device/block.cuh"
#include "device/elements.cuh"
#include "device/instructions.cuh"
#include "kernels/kernel_table.h"
#include "tensor/view.h"

namespace balora::cuda {

struct Blas;

// A fault that a kernel found on the device (an index out of range). Lives in pinned host memory
// that the device writes; the first fault since the last synchronize() wins.
struct Fault {
  int32_t code;  // 0: none, else a FaultCode
  int32_t row;   // of kernels.def, see fault_row()
  int64_t value;
  int64_t limit;
  int64_t position;
};
enum FaultCode : int32_t {
  kNoFault = 0,
  kIndexOutOfRange = 1,  // value at position, limit: values below it
  kSingularMatrix = 2,
  kNotFinite = 3,
  kNotConverged = 4,
  // Faults of attention's segments; value holds two numbers, see fault_pair().
  kSegmentEnds = 5,        // (first, last) bound, limit: rows
  kSegmentFalls = 6,       // (bound, next bound), limit: index of the next
  kSegmentLength = 7,      // (length, rows of the segment), limit: segment
  kSegmentReach = 8,       // (segment, its rows), limit: relative positions
  kPositionIndex = 9,      // (index, its value), limit: rows of the position table
  kOutsideTables = 10,     // (row, its position), limit: rows of the tables
  kTargetOutOfRange = 11,  // value at position, limit: classes
  kQueryEnds = 12,         // (first, last) bound, limit: rows of q
  kSegmentQueries = 13,    // (queries, rows of the segment), limit: segment
  // Faults of a cache's lists.
  kCacheRows = 14,    // (rows, positions), limit: sequence
  kCacheBlocks = 15,  // (sequence, positions), limit: blocks of its list
  kCacheBlock = 16,   // (block, sequence), limit: blocks of the cache
  kCacheWindow = 17,  // (sequence, position)
  kCacheBias = 18,    // (sequence, positions), limit: distances of the bias
};

// One device in one environment. Used by the engine thread only, except allocate and release.
struct DeviceState {
  int32_t device = 0;
  cudaStream_t stream = nullptr;
  Blas* blas = nullptr;    // blas.cuh
  Fault* fault = nullptr;  // pinned
  int32_t multiprocessors = 1;
  int32_t compute_capability = 80;  // 10 * major + minor
  int64_t shared_limit = 48 << 10;  // dynamic shared memory a block may ask for
  std::string name;
  const char* launched = nullptr;  // the last kernel, for an error that shows later
  // Why allocate() failed, which can only say that there is no memory: the next row reports it.
  std::atomic<cudaError_t> failed{cudaSuccess};
  // Scratch of the row that runs (blas.cu): its products share it, however many there are.
  float* widened = nullptr;
  int64_t widened_count = 0;
};

inline DeviceState& state_of(Context* ctx) {
  return *static_cast<DeviceState*>(ctx->device_state);
}
// A variable of the environment, null where it is not set (kernels/kernel_table.h).
inline const char* variable_of(Context* ctx, const char* name) {
  return ctx->variable ? ctx->variable(name) : nullptr;
}
inline cudaStream_t stream_of(Context* ctx) {
  return state_of(ctx).stream;
}

// A lack of memory, which the engine recognises by how the text begins (kernels/kernel_table.h).
class OutOfMemory : public std::runtime_error {
 public:
  explicit OutOfMemory(const std::string& what) : std::runtime_error("out of memory: " + what) {}
};

[[noreturn]] inline void fail(cudaError_t status, const char* what, const std::string& reason) {
  const std::string text = std::string(what) + ": " + reason;
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(text);
  throw std::runtime_error(text);
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(status, what, cudaGetErrorString(status));
}

// CUDA reports what went wrong in a kernel at a later call, and does not say in which kernel.
inline std::string later_failure(cudaError_t status, const char* launched) {
  std::string text = cudaGetErrorString(status);
  if (launched) text += std::string(", at or before the kernel ") + launched;
  return text;
}

// For a call that may return the failure of something before it.
inline void check_stream(Context* ctx, cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(status, what, later_failure(status, state_of(ctx).launched));
}

// Scratch on the device, in stream order; aligned to 64 bytes.
template <typename T>
T* workspace(Context* ctx, int64_t count) {
  void* data = ctx->workspace(ctx, static_cast<uint64_t>(std::max<int64_t>(count, 1)) * sizeof(T));
  if (!data) {
    // The engine has left the sizes there.
    if (ctx->error[0]) throw std::runtime_error(ctx->error);
    throw OutOfMemory(std::to_string(count * sizeof(T)) + " bytes of scratch wanted");
  }
  return static_cast<T*>(data);
}

// A size that a kernel takes as 32 bits.
inline int32_t narrowed(int64_t size, const char* what) {
  if (size < 0 || size > INT32_MAX) {
    throw std::runtime_error(std::string(what) + " " + std::to_string(size) +
                             " is not from 0 to 2147483647, the sizes that this kernel takes");
  }
  return static_cast<int32_t>(size);
}

// ---- Launching ----------------------------------------------------------------------------------

struct Grid {
  dim3 blocks;
  dim3 threads;
  int64_t shared_bytes = 0;  // dynamic shared memory, see SharedMemory
};

constexpr int64_t kMaxBlocks = 1 << 20;  // grid-stride loops never need more
// A block has 48 KiB unasked, its static arrays among them: those of a kernel that has dynamic
// memory as well are below 8.
constexpr int64_t kUnaskedShared = 40 << 10;

// A launch that is refused is its own kernel's fault, any other error that of work before it.
inline void check_launch(Context* ctx, cudaError_t status, const char* name) {
  switch (status) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorLaunchOutOfResources:
      return check(status, name);
    default:
      return check_stream(ctx, status, name);
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Blocks of `threads` for n independent elements, each thread with `per_thread` of them in a
// grid-stride loop; the one block of a small n has no more warps than it needs.
inline Grid elements(int64_t n, int threads = 256, int64_t per_thread = 1) {
  const int64_t wanted = ceil_div(n, per_thread),
                block = std::min<int64_t>(threads, 32 * ceil_div(wanted, 32));
  const int64_t blocks = std::clamp<int64_t>(ceil_div(wanted, threads), 1, kMaxBlocks);
  return {dim3(static_cast<unsigned>(blocks)),
          dim3(static_cast<unsigned>(std::max<int64_t>(block, 32)))};
}

// Starts kernel(args...) on the context's stream. Arguments are converted to the parameters' types.
// A launch that fails throws with `name`; in debug mode the call waits for the kernel.
template <typename... Params, typename... Args>
void launch(Context* ctx, const char* name, const Grid& grid, void (*kernel)(Params...),
            Args... args) {
  static_assert(sizeof...(Params) == sizeof...(Args));
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  if (grid.shared_bytes > state_of(ctx).shared_limit) {
    throw std::runtime_error(std::string(name) + ": needs " + std::to_string(grid.shared_bytes) +
                             " bytes of shared memory, the device has " +
                             std::to_string(state_of(ctx).shared_limit));
  }
#if BALORA_EMULATED
  emulator::run(name, grid.blocks, grid.threads, grid.shared_bytes, stream_of(ctx),
                [=] { kernel(static_cast<Params>(args)...); });
#else
  if (grid.shared_bytes > kUnaskedShared) {
    check_launch(ctx,
                 cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(grid.shared_bytes)),
                 name);
  }
  const auto shared = static_cast<size_t>(grid.shared_bytes);
  // clang-format off: in C++ mode it takes the brackets apart
  kernel<<<grid.blocks, grid.threads, shared, stream_of(ctx)>>>(static_cast<Params>(args)...);
  // clang-format on
#endif
  check_launch(ctx, cudaGetLastError(), name);
  state_of(ctx).launched = name;
  if (ctx->debug) check(cudaStreamSynchronize(stream_of(ctx)), name);
}

// ---- Indexing -----------------------------------------------------------------------------------

// A strided view by value, for kernels.
struct Strided {
  int64_t shape[BALORA_MAX_DIMS];
  int64_t stride[BALORA_MAX_DIMS];
  int32_t ndim;
};
inline Strided strided(const View& view) {
  Strided out{};
  out.ndim = view.ndim;
  for (int i = 0; i < view.ndim; ++i) {
    out.shape[i] = view.shape[i];
    out.stride[i] = view.stride[i];
  }
  return out;
}
// Offset in elements of the i-th element in row-major order.
__device__ inline int64_t offset_of(const Strided& view, int64_t i) {
  int64_t offset = 0;
  for (int d = view.ndim - 1; d >= 0; --d) {
    offset += i % view.shape[d] * view.stride[d];
    i /= view.shape[d];
  }
  return offset;
}

__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t thread_count() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// ---- Faults -------------------------------------------------------------------------------------

__device__ inline void report_fault(Fault* fault, int32_t code, int32_t row, int64_t value,
                                    int64_t limit, int64_t position = 0) {
  if (atomicCAS(&fault->code, int32_t{kNoFault}, code) != kNoFault) return;
  fault->row = row;
  fault->value = value;
  fault->limit = limit;
  fault->position = position;
}
// Two numbers in a fault's value.
__host__ __device__ inline int64_t fault_pair(int32_t first, int32_t second) {
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(first)) << 32 |
                              static_cast<uint32_t>(second));
}
// Number of a row of kernels.def by its name, for report_fault; 0 where there is none.
int32_t fault_row(const char* name);

}  // namespace balora::cuda

// The rows that the .cu files define, with names and arguments as on the CPU.
#define KERNEL(name) int32_t name##_kernel(Context* ctx, const balora_##name& o);
namespace balora::cuda {
#include "kernels/kernels.def"
}  // namespace balora::cuda
