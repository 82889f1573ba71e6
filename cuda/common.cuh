// What every kernel file of the CUDA device builds on: the state of a device, launching, element
// types, shared memory, reductions, and the only PTX of the house. The same files compile with the
// host compiler against test/emulator (a cuda_runtime.h of its own), so: launch() starts every
// kernel, BALORA_SHARED and SharedMemory are the only ways to shared memory, and an instruction
// that C++ cannot name gets a function here and its twin in test/emulator/instructions.h.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/kernel_table.h"
#include "tensor/view.h"

// BALORA_UNROLL before a loop: all of it, so that arrays indexed by it live in registers.
#if defined(__CUDACC__)
#define BALORA_EMULATED 0
#define BALORA_UNROLL _Pragma("unroll")
#else
#define BALORA_EMULATED 1
#define BALORA_UNROLL
#include "instructions.h"
#endif

namespace balora::cuda {

struct Blas;

// What a kernel found wrong on the device (an index out of range). Lives in pinned host memory that
// the device writes; the first fault since the last synchronize() wins.
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
  // Of attention's segments; value holds two numbers, see fault_pair().
  kSegmentEnds = 5,        // (first, last) bound, limit: rows
  kSegmentFalls = 6,       // (bound, next bound), limit: index of the next
  kSegmentLength = 7,      // (length, rows of the segment), limit: segment
  kSegmentReach = 8,       // (segment, its rows), limit: relative positions
  kPositionIndex = 9,      // (index, its value), limit: rows of the position table
  kOutsideTables = 10,     // (row, its position), limit: rows of the tables
  kTargetOutOfRange = 11,  // value at position, limit: classes
};

// One device in one environment. Used by the engine thread only, except allocate and release.
struct DeviceState {
  int32_t device = 0;
  cudaStream_t stream = nullptr;
  Blas* blas = nullptr;    // cublas.h
  Fault* fault = nullptr;  // pinned
  int32_t multiprocessors = 1;
  int32_t compute_capability = 80;  // 10 * major + minor
  int64_t shared_limit = 48 << 10;  // dynamic shared memory a block may ask for
  std::string name;
};

inline DeviceState& state_of(Context* ctx) {
  return *static_cast<DeviceState*>(ctx->device_state);
}
inline cudaStream_t stream_of(Context* ctx) {
  return state_of(ctx).stream;
}

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Scratch on the device, in stream order; aligned to 64 bytes.
template <typename T>
T* workspace(Context* ctx, int64_t count) {
  void* data = ctx->workspace(ctx, static_cast<uint64_t>(std::max<int64_t>(count, 1)) * sizeof(T));
  if (!data) {
    throw std::runtime_error("out of device memory for " + std::to_string(count * sizeof(T)) +
                             " bytes of scratch");
  }
  return static_cast<T*>(data);
}

// ---- Launching ----------------------------------------------------------------------------------

struct Grid {
  dim3 blocks;
  dim3 threads;
  int64_t shared_bytes = 0;  // dynamic shared memory, see SharedMemory
};

constexpr int64_t kMaxBlocks = 1 << 20;  // grid-stride loops never need more

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
  if (grid.shared_bytes > (48 << 10)) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared_bytes)),
          name);
  }
  const auto shared = static_cast<size_t>(grid.shared_bytes);
  // clang-format off: in C++ mode it takes the brackets apart
  kernel<<<grid.blocks, grid.threads, shared, stream_of(ctx)>>>(static_cast<Params>(args)...);
  // clang-format on
#endif
  check(cudaGetLastError(), name);
  if (ctx->debug) check(cudaStreamSynchronize(stream_of(ctx)), name);
}

// ---- Element types ------------------------------------------------------------------------------

// Storage formats; arithmetic happens in Acc<T>.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

__host__ __device__ inline float bits_to_float(uint32_t bits) {
  union {
    uint32_t u;
    float f;
  } both{bits};
  return both.f;
}
__host__ __device__ inline uint32_t float_to_bits(float value) {
  union {
    float f;
    uint32_t u;
  } both{value};
  return both.u;
}

__device__ inline float load(float value) {
  return value;
}
__device__ inline double load(double value) {
  return value;
}
__device__ inline float load(bf16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ inline float load(f16 value) {
#if BALORA_EMULATED
  return emulator::half_to_float(value.bits);
#else
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
  return out;
#endif
}
__device__ inline int32_t load(int32_t value) {
  return value;
}
__device__ inline int64_t load(int64_t value) {
  return value;
}
__device__ inline uint8_t load(uint8_t value) {
  return value;
}

// One rounding, to nearest even.
template <typename T>
__device__ inline T store(Acc<T> value) {
  if constexpr (std::is_same_v<T, bf16>) {
#if BALORA_EMULATED
    return {emulator::float_to_bf16(value)};
#else
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
#endif
  } else if constexpr (std::is_same_v<T, f16>) {
#if BALORA_EMULATED
    return {emulator::float_to_half(value)};
#else
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
#endif
  } else {
    return static_cast<T>(value);
  }
}

// Calls body.template operator()<T>() for the float type of `dtype`.
template <typename Body>
decltype(auto) dispatch_float(int32_t dtype, Body&& body) {
  switch (dtype) {
    case BALORA_F32:
      return body.template operator()<float>();
    case BALORA_BF16:
      return body.template operator()<bf16>();
    case BALORA_F16:
      return body.template operator()<f16>();
    case BALORA_F64:
      return body.template operator()<double>();
    default:
      throw std::runtime_error("dtype number " + std::to_string(dtype) + " is not a float type");
  }
}

// The same over every element type, for kernels that move or compare values.
template <typename Body>
decltype(auto) dispatch_any(int32_t dtype, Body&& body) {
  switch (dtype) {
    case BALORA_I32:
      return body.template operator()<int32_t>();
    case BALORA_I64:
      return body.template operator()<int64_t>();
    case BALORA_U8:
      return body.template operator()<uint8_t>();
    default:
      return dispatch_float(dtype, std::forward<Body>(body));
  }
}

template <typename T>
T* data_of(const View* view) {
  return view ? static_cast<T*>(view->data) : nullptr;
}

// K neighbours moved in one access of K * sizeof(T) bytes; the address must be a multiple of that.
template <typename T, int K>
struct alignas(sizeof(T) * K) Pack {
  T at[K];
};
// Elements of T in a 16-byte access.
template <typename T>
constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

template <typename T>
bool aligned16(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
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

// ---- Shared memory ------------------------------------------------------------------------------

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

// Hands out the dynamic shared memory of a block, piece by piece; every thread asks for the same.
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
    T* piece = reinterpret_cast<T*>(next_);
    next_ += shared_bytes<T>(count);
    return piece;
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

// ---- Instructions that C++ cannot name ----------------------------------------------------------

#if BALORA_EMULATED
using emulator::cp_async16;
using emulator::cp_async_commit;
using emulator::cp_async_wait;
using emulator::exp2_approx;
using emulator::ldmatrix_x4;
using emulator::ldmatrix_x4_trans;
using emulator::mma_bf16;
using emulator::mma_f16;
using emulator::mma_tf32;
using emulator::pack_bf16;
using emulator::pack_f16;
#else

// 2^x to 2 ulp; a subnormal result is 0.
__device__ inline float exp2_approx(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
// Two values, each rounded to nearest even, the first in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// Copies 16 bytes from global to shared memory in the background; both aligned to 16. With
// `valid` bytes below 16 the rest is zeros.
__device__ inline void cp_async16(void* shared, const void* global, int valid = 16) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid)
               : "memory");
}
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most N of this thread's groups are under way.
template <int N>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8
// (aligned to 16). Lane l gets of each matrix row l / 4, columns 2 * (l % 4) and the next.
__device__ inline void ldmatrix_x4(uint32_t (&out)[4], const void* shared) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}
// The same of the transposed matrices.
__device__ inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* shared) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}

// d (16x8, f32) += a (16x16) b (16x8), by a warp. With g = lane / 4, t = lane % 4, pairs of columns
// in one register: a[0] row g columns 2t, a[1] row g+8 columns 2t, a[2] row g columns 2t+8, a[3]
// row g+8 columns 2t+8; b[0] rows 2t of column g, b[1] rows 2t+8 of column g; d[0..1] row g columns
// 2t, d[2..3] row g+8 columns 2t. (PTX ISA, mma.m16n8k16.)
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d (16x8) += a (16x8) b (8x8) of f32 bits whose low 13 are ignored: a[0] (g, t), a[1] (g+8, t),
// a[2] (g, t+4), a[3] (g+8, t+4); b[0] (t, g), b[1] (t+4, g); d as above.
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

}  // namespace balora::cuda

// The rows that the .cu files define, with names and arguments as on the CPU.
#define KERNEL(name, signature) int32_t name##_kernel signature;
namespace balora::cuda {
#include "kernels/kernels.def"
}  // namespace balora::cuda
#undef KERNEL
