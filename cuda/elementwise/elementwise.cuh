// Common parts of elementwise kernels: operands whose type is known at run time, moved by groups of
// eight elements a thread, and loops over strided views of one shape.
//
// A kernel is instantiated for its accumulator (float, double, int64_t) alone. The type of storage
// is a branch that all threads take alike and that hides behind the memory access; a template over
// types, or over pairs of them, would multiply the time and size of the build instead.
#pragma once
#include "kernels/shared/rows.h"
#include "runtime/common.cuh"

namespace balora::cuda {

constexpr int kGroup = 8;  // 16 bytes of a 16-bit type, two accesses of 16 bytes of f32

struct Operand {
  void* data;
  int32_t dtype;
  int32_t aligned;  // every whole group starts at a multiple of 16 bytes and is contiguous
};

// A contiguous operand, or none.
inline Operand operand(const View* view) {
  if (!view) return {nullptr, BALORA_F32, 0};
  return {view->data, view->dtype, aligned16(data_of<char>(view))};
}

// Elements of a group that move in one access of 16 bytes.
inline int64_t pack_of(int32_t dtype) {
  return std::min<int64_t>(kGroup, 16 / element_size(dtype));
}

inline Grid groups(int64_t n) {
  return elements(ceil_div(n, kGroup));
}
// Elements of the group that starts at `at`, of n.
__device__ inline int group_count(int64_t n, int64_t at) {
  return n - at < kGroup ? static_cast<int>(n - at) : kGroup;
}

// Calls body.template operator()<A>() for the accumulator of a float type.
template <typename Body>
void dispatch_accumulator(int32_t dtype, Body&& body) {
  dispatch_float(dtype == BALORA_F64                           ? BALORA_F64
                 : dtype == BALORA_BF16 || dtype == BALORA_F16 ? int32_t{BALORA_F32}
                                                               : dtype,
                 [&]<typename T>() { return body.template operator()<Acc<T>>(); });
}

// ---- Single elements ----------------------------------------------------------------------------

// A float accumulator reads and writes the float types, int64_t the integers.
template <typename A>
__device__ inline A read(const Operand& x, int64_t i) {
  if constexpr (std::is_integral_v<A>) {
    switch (x.dtype) {
      case BALORA_I32:
        return static_cast<const int32_t*>(x.data)[i];
      case BALORA_I64:
        return static_cast<const int64_t*>(x.data)[i];
      default:
        return static_cast<const uint8_t*>(x.data)[i];
    }
  } else {
    switch (x.dtype) {
      case BALORA_F32:
        return static_cast<A>(static_cast<const float*>(x.data)[i]);
      case BALORA_BF16:
        return static_cast<A>(load(static_cast<const bf16*>(x.data)[i]));
      case BALORA_F16:
        return static_cast<A>(load(static_cast<const f16*>(x.data)[i]));
      default:
        return static_cast<A>(static_cast<const double*>(x.data)[i]);
    }
  }
}

template <typename A>
__device__ inline void write(const Operand& y, int64_t i, A value) {
  if constexpr (std::is_integral_v<A>) {
    switch (y.dtype) {
      case BALORA_I32:
        static_cast<int32_t*>(y.data)[i] = static_cast<int32_t>(value);
        break;
      case BALORA_I64:
        static_cast<int64_t*>(y.data)[i] = value;
        break;
      default:
        static_cast<uint8_t*>(y.data)[i] = static_cast<uint8_t>(value);
    }
  } else {
    switch (y.dtype) {
      case BALORA_F32:
        static_cast<float*>(y.data)[i] = static_cast<float>(value);
        break;
      case BALORA_BF16:
        static_cast<bf16*>(y.data)[i] = store<bf16>(static_cast<float>(value));
        break;
      case BALORA_F16:
        static_cast<f16*>(y.data)[i] = store<f16>(static_cast<float>(value));
        break;
      default:
        static_cast<double*>(y.data)[i] = static_cast<double>(value);
    }
  }
}

// ---- Groups -------------------------------------------------------------------------------------

// Eight neighbours, in accesses of 16 bytes.
template <typename A, typename T>
__device__ inline void read_neighbours(const T* x, A (&v)[kGroup]) {
  constexpr int K = kPackOf<T>;
  BALORA_UNROLL
  for (int p = 0; p < kGroup / K; ++p) {
    const Pack<T, K> pack = reinterpret_cast<const Pack<T, K>*>(x)[p];
    BALORA_UNROLL
    for (int j = 0; j < K; ++j) v[p * K + j] = static_cast<A>(load(pack.at[j]));
  }
}
template <typename A, typename T>
__device__ inline void write_neighbours(T* y, const A (&v)[kGroup]) {
  constexpr int K = kPackOf<T>;
  BALORA_UNROLL
  for (int p = 0; p < kGroup / K; ++p) {
    Pack<T, K> pack;
    BALORA_UNROLL
    for (int j = 0; j < K; ++j) pack.at[j] = store<T>(static_cast<Acc<T>>(v[p * K + j]));
    reinterpret_cast<Pack<T, K>*>(y)[p] = pack;
  }
}

// The first `count` elements at x[at], x[at + step], ...; zeros after them.
template <typename A>
__device__ inline void read_group(const Operand& x, int64_t at, int64_t step, int count,
                                  A (&v)[kGroup]) {
  if constexpr (!std::is_integral_v<A>) {
    if (x.aligned && count == kGroup) {
      switch (x.dtype) {
        case BALORA_F32:
          return read_neighbours(static_cast<const float*>(x.data) + at, v);
        case BALORA_BF16:
          return read_neighbours(static_cast<const bf16*>(x.data) + at, v);
        case BALORA_F16:
          return read_neighbours(static_cast<const f16*>(x.data) + at, v);
        default:
          return read_neighbours(static_cast<const double*>(x.data) + at, v);
      }
    }
  }
  BALORA_UNROLL
  for (int j = 0; j < kGroup; ++j) v[j] = j < count ? read<A>(x, at + j * step) : A(0);
}

template <typename A>
__device__ inline void write_group(const Operand& y, int64_t at, int64_t step, int count,
                                   const A (&v)[kGroup]) {
  if constexpr (!std::is_integral_v<A>) {
    if (y.aligned && count == kGroup) {
      switch (y.dtype) {
        case BALORA_F32:
          return write_neighbours(static_cast<float*>(y.data) + at, v);
        case BALORA_BF16:
          return write_neighbours(static_cast<bf16*>(y.data) + at, v);
        case BALORA_F16:
          return write_neighbours(static_cast<f16*>(y.data) + at, v);
        default:
          return write_neighbours(static_cast<double*>(y.data) + at, v);
      }
    }
  }
  BALORA_UNROLL
  for (int j = 0; j < kGroup; ++j) {
    if (j < count) write<A>(y, at + j * step, v[j]);
  }
}

// The same of contiguous operands.
template <typename A>
__device__ inline void read_group(const Operand& x, int64_t at, int count, A (&v)[kGroup]) {
  read_group(x, at, 1, count, v);
}
template <typename A>
__device__ inline void write_group(const Operand& y, int64_t at, int count, const A (&v)[kGroup]) {
  write_group(y, at, 1, count, v);
}

// ---- Loops over strided views -------------------------------------------------------------------

// K views of one shape; dimensions that all of them walk evenly are merged.
template <int K>
struct Loop {
  int64_t shape[BALORA_MAX_DIMS];
  int64_t stride[BALORA_MAX_DIMS][K];  // in elements
  int64_t count;
  int64_t length;  // of the innermost dimension, in elements
  int32_t ndim;    // at least 1

  __host__ __device__ int64_t step(int k) const { return stride[ndim - 1][k]; }
};

template <int K>
Loop<K> plan_loop(const View* const (&views)[K]) {
  Loop<K> loop{};
  loop.count = view_numel(*views[0]);
  for (int32_t d = 0; d < views[0]->ndim; ++d) {
    const int64_t size = views[0]->shape[d];
    if (size == 1) continue;
    bool merges = loop.ndim > 0;
    for (int k = 0; merges && k < K; ++k) {
      merges = loop.stride[loop.ndim - 1][k] == views[k]->stride[d] * size;
    }
    if (!merges) ++loop.ndim;
    int64_t& merged = loop.shape[loop.ndim - 1];
    merged = merges ? merged * size : size;
    for (int k = 0; k < K; ++k) loop.stride[loop.ndim - 1][k] = views[k]->stride[d];
  }
  if (loop.ndim == 0) {
    loop.ndim = 1;
    loop.shape[0] = 1;
    for (int k = 0; k < K; ++k) loop.stride[0][k] = 1;
  }
  loop.length = loop.shape[loop.ndim - 1];
  return loop;
}

// The same walk with `count` groups along the innermost dimension instead of elements.
template <int K>
Loop<K> by_groups(Loop<K> loop) {
  int64_t& inner = loop.shape[loop.ndim - 1];
  if (loop.count > 0) loop.count = loop.count / inner * ceil_div(inner, kGroup);
  inner = ceil_div(inner, kGroup);
  return loop;
}

// Operand k of a loop, whose strides decide whether its groups can be read whole.
template <int K>
Operand operand(const View* view, const Loop<K>& loop, int k) {
  Operand out = operand(view);
  if (!view) return out;
  const int64_t pack = pack_of(view->dtype);
  bool aligned = out.aligned && loop.step(k) == 1;
  for (int32_t d = 0; d + 1 < loop.ndim; ++d) aligned &= loop.stride[d][k] % pack == 0;
  out.aligned = aligned;
  return out;
}

// Offsets of the i-th element, or with `width` kGroup of the i-th group; returns the index within
// the innermost dimension.
template <int K, typename Index>
__device__ inline int64_t walk(const Loop<K>& loop, Index i, int width, int64_t (&at)[K]) {
  int64_t inner = 0;
  BALORA_UNROLL
  for (int k = 0; k < K; ++k) at[k] = 0;
  for (int d = loop.ndim - 1; d >= 0; --d) {
    const Index size = static_cast<Index>(loop.shape[d]);
    const Index rest = d == 0 ? 0 : i / size;
    int64_t index = static_cast<int64_t>(i - rest * size);
    if (d == loop.ndim - 1) inner = index *= width;
    BALORA_UNROLL
    for (int k = 0; k < K; ++k) at[k] += index * loop.stride[d][k];
    i = rest;
  }
  return inner;
}
template <int K>
__device__ inline int64_t offsets(const Loop<K>& loop, int64_t i, int width, int64_t (&at)[K]) {
  // Division of 32-bit numbers is several times cheaper.
  if (loop.count <= 0x7fffffff) return walk(loop, static_cast<uint32_t>(i), width, at);
  return walk(loop, static_cast<uint64_t>(i), width, at);
}
// Offsets of group g; returns its number of elements.
template <int K>
__device__ inline int group_offsets(const Loop<K>& loop, int64_t g, int64_t (&at)[K]) {
  return group_count(loop.length, offsets(loop, g, kGroup, at));
}

}  // namespace balora::cuda
