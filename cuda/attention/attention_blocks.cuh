// Products of 64 x 64 tiles by fused multiply-add, for attention in f32 and f64: 256 threads hold
// 4 x 4 of the result each, operands pass through shared memory in slices, transposed so that a
// thread reads its four values of either side in one access: two accesses for 16 products.
#pragma once
#include "attention/attention.cuh"

namespace balora::cuda::attention {

constexpr int kSide = 64;   // rows and columns of a tile
constexpr int kDepth = 16;  // of a slice of a product over channels
constexpr int kSlab = 32;   // of a slice of a product over rows
constexpr int kEdge = 4;    // rows and columns of a thread
constexpr int kBlockThreads = 256;
constexpr int kTransposedPitch = kSide + 4;

template <typename A>
using Corner = A[kEdge][kEdge];

// This thread's first row and first column.
__device__ inline int32_t row_of_thread() {
  return static_cast<int32_t>(threadIdx.x) / (kSide / kEdge) * kEdge;
}
__device__ inline int32_t column_of_thread() {
  return static_cast<int32_t>(threadIdx.x) % (kSide / kEdge) * kEdge;
}

// Rows of one head, of which `count` exist; zeros beyond.
template <typename T>
struct Source {
  const T* data;
  int64_t stride;
  int32_t count, size;
  __device__ Acc<T> at(int32_t row, int32_t column) const {
    return row < count && column < size ? load(data[row * stride + column]) : Acc<T>(0);
  }
};
template <typename T>
__device__ inline Source<T> rows_of(const Heads<const T>& heads, int64_t row, int32_t head,
                                    int32_t count) {
  return {heads.at(row, head), heads.stride, count, heads.size};
}

// The two slices in shared memory that the products below pass their operands through.
template <typename A>
struct Slices {
  A *left, *right;
  __device__ explicit Slices(SharedMemory& shared)
      : left(shared.array<A>(kDepth * kTransposedPitch)),
        right(shared.array<A>(kSlab * kTransposedPitch)) {}
  static constexpr int64_t kBytes =
      shared_bytes<A>(kDepth * kTransposedPitch) + shared_bytes<A>(kSlab * kTransposedPitch);
};
template <typename A>
constexpr int64_t kSquareBytes = shared_bytes<A>(kSide * kTransposedPitch);

template <typename A>
__device__ inline void add_outer(Corner<A>& sums, const A* left, const A* right) {
  const auto a = *reinterpret_cast<const Pack<A, kEdge>*>(left);
  const auto b = *reinterpret_cast<const Pack<A, kEdge>*>(right);
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    BALORA_UNROLL
    for (int j = 0; j < kEdge; ++j) sums[i][j] += a.at[i] * b.at[j];
  }
}

// sums (row of x, row of y) += <x, y>. Every thread of the block.
template <typename T>
__device__ inline void multiply_rows(Corner<Acc<T>>& sums, const Source<T>& x, const Source<T>& y,
                                     const Slices<Acc<T>>& slices) {
  const int32_t row = row_of_thread(), column = column_of_thread();
  for (int32_t d = 0; d < x.size; d += kDepth) {
    __syncthreads();
    for (int32_t i = threadIdx.x; i < kSide * kDepth; i += kBlockThreads) {
      const int32_t r = i / kDepth, c = i % kDepth;
      slices.left[c * kTransposedPitch + r] = x.at(r, d + c);
      slices.right[c * kTransposedPitch + r] = y.at(r, d + c);
    }
    __syncthreads();
    BALORA_UNROLL
    for (int c = 0; c < kDepth; ++c) {
      add_outer(sums, slices.left + c * kTransposedPitch + row,
                slices.right + c * kTransposedPitch + column);
    }
  }
}

// sums (row, column of x) += sum over k of weights (k, row) x (k, column), for kSide columns from
// `first` on. Every thread of the block; weights, in shared memory, may be just written.
template <typename T>
__device__ inline void multiply_columns(Corner<Acc<T>>& sums, const Acc<T>* weights,
                                        const Source<T>& x, int32_t first,
                                        const Slices<Acc<T>>& slices) {
  const int32_t row = row_of_thread(), column = column_of_thread();
  for (int32_t k = 0; k < kSide; k += kSlab) {
    __syncthreads();
    for (int32_t i = threadIdx.x; i < kSlab * kSide; i += kBlockThreads) {
      const int32_t r = i / kSide, c = i % kSide;
      slices.right[r * kTransposedPitch + c] = x.at(k + r, first + c);
    }
    __syncthreads();
    BALORA_UNROLL
    for (int r = 0; r < kSlab; ++r) {
      add_outer(sums, weights + (k + r) * kTransposedPitch + row,
                slices.right + r * kTransposedPitch + column);
    }
  }
}

// Leaves a result as weights (column, row) of multiply_columns.
template <typename A>
__device__ inline void store_transposed(A* weights, const Corner<A>& values) {
  const int32_t row = row_of_thread(), column = column_of_thread();
  BALORA_UNROLL
  for (int j = 0; j < kEdge; ++j) {
    Pack<A, kEdge> pack;
    BALORA_UNROLL
    for (int i = 0; i < kEdge; ++i) pack.at[i] = values[i][j];
    *reinterpret_cast<Pack<A, kEdge>*>(weights + (column + j) * kTransposedPitch + row) = pack;
  }
}

// Writes the columns from `first` on of a thread's rows, each times its factor; `count` rows exist.
template <typename T>
__device__ inline void write_corner(const Corner<Acc<T>>& sums, const Acc<T> (&factors)[kEdge],
                                    T* rows, int64_t stride, int32_t count, int32_t first,
                                    int32_t size) {
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    const int32_t row = row_of_thread() + i;
    BALORA_UNROLL
    for (int j = 0; j < kEdge; ++j) {
      const int32_t column = first + column_of_thread() + j;
      if (row < count && column < size) {
        rows[row * stride + column] = store<T>(sums[i][j] * factors[i]);
      }
    }
  }
}

// A running softmax of a thread's rows, kept alike by the 16 threads that share them.
template <typename A>
struct RunningSoftmax {
  A highest[kEdge], total[kEdge];
  __device__ RunningSoftmax() {
    BALORA_UNROLL
    for (int i = 0; i < kEdge; ++i) highest[i] = -INFINITY, total[i] = 0;
  }

  // Scores, -infinity where a key is not seen, become probabilities relative to the maximum so far;
  // older sums are to be multiplied by `rescale`.
  __device__ void take(Corner<A>& scores, A (&rescale)[kEdge]) {
    BALORA_UNROLL
    for (int i = 0; i < kEdge; ++i) {
      A best = highest[i];
      BALORA_UNROLL
      for (int j = 0; j < kEdge; ++j) best = scores[i][j] > best ? scores[i][j] : best;
      for (int by = kSide / kEdge / 2; by > 0; by /= 2) {
        const A other = __shfl_xor_sync(kAllLanes, best, by);
        best = other > best ? other : best;
      }
      const A base = best == -INFINITY ? A(0) : best;
      A sum = 0;
      BALORA_UNROLL
      for (int j = 0; j < kEdge; ++j) {
        scores[i][j] = std::exp(scores[i][j] - base);
        sum += scores[i][j];
      }
      for (int by = kSide / kEdge / 2; by > 0; by /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, by);
      }
      rescale[i] = std::exp(highest[i] - base);
      total[i] = total[i] * rescale[i] + sum;
      highest[i] = best;
    }
  }

  // 0 for a row without a key.
  __device__ A lse(int i) const { return total[i] == 0 ? A(0) : highest[i] + std::log(total[i]); }
  __device__ A inverse(int i) const { return total[i] == 0 ? A(0) : A(1) / total[i]; }
};

}  // namespace balora::cuda::attention
