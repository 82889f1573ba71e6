// Tensor-core tiles of attention in bf16 and f16: rows of D values in shared memory, D rounded up
// to kSize with zeros, rows padded by 16 bytes so that the eight rows of a matrix that ldmatrix
// reads lie in different banks. Copies run in the background where the layout allows
// 16-byte accesses.
#pragma once
#include "attention/attention.cuh"

namespace balora::cuda::attention {

constexpr int kMmaThreads = 128;
constexpr int kMmaWarps = kMmaThreads / kWarp;

template <typename T>
struct Mma;
template <>
struct Mma<bf16> {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
  static __device__ uint32_t pack(float low, float high) { return pack_bf16(low, high); }
};
template <>
struct Mma<f16> {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
  static __device__ uint32_t pack(float low, float high) { return pack_f16(low, high); }
};

template <int kSize>
constexpr int kPitch = kSize + 8;  // elements from one row of a tile to the next

// A tile of kRows x kSize in shared memory from `count` rows of `size` values at `rows`, zeros
// beyond. With `packs` in the background, as part of this thread's next group of copies.
template <int kSize, int kRows, typename T>
__device__ inline void fetch_tile(T* tile, const T* rows, int64_t stride, int32_t count,
                                  int32_t size, bool packs) {
  // Threads next to each other take neighbouring packs of a row; each steps down the rows.
  constexpr int kAcross = kSize / 8 & -(kSize / 8), kDown = kMmaThreads / kAcross;
  static_assert(kRows % kDown == 0);
  const int column = static_cast<int>(threadIdx.x) % kAcross * 8;
  const int row = static_cast<int>(threadIdx.x) / kAcross;
  T* to = tile + row * kPitch<kSize> + column;
  const T* from = rows + row * stride + column;
  count -= row, size -= column;
  if (packs) {
    BALORA_UNROLL
    for (int r = 0; r < kRows; r += kDown, from += kDown * stride) {
      BALORA_UNROLL
      for (int c = 0; c < kSize; c += 8 * kAcross) {
        const bool there = r < count && c < size;
        cp_async16(to + r * kPitch<kSize> + c, there ? from + c : rows, there ? 16 : 0);
      }
    }
    return;
  }
  for (int r = 0; r < kRows; r += kDown, from += kDown * stride) {
    for (int c = 0; c < kSize; c += 8 * kAcross) {
      for (int e = c; e < c + 8; ++e) {
        to[r * kPitch<kSize> + e] = r < count && e < size ? from[e] : T{0};
      }
    }
  }
}

// Operands of mma from a tile: 16 x 16 of A stored (m, k), and of B for two neighbouring products,
// 16 columns n x 16 of k stored (n, k), or stored (k, n).
template <int kSize, typename T>
__device__ inline void load_a(uint32_t (&a)[4], const T* tile) {
  const int lane = threadIdx.x % kWarp;
  ldmatrix_x4(a, tile + lane % 16 * kPitch<kSize> + lane / 16 * 8);
}
template <int kSize, typename T>
__device__ inline void load_b(uint32_t (&b)[2][2], const T* tile) {
  const int lane = threadIdx.x % kWarp;
  uint32_t all[4];
  ldmatrix_x4(all, tile + (lane / 16 * 8 + lane % 8) * kPitch<kSize> + lane / 8 % 2 * 8);
  b[0][0] = all[0], b[0][1] = all[1], b[1][0] = all[2], b[1][1] = all[3];
}
template <int kSize, typename T>
__device__ inline void load_b_transposed(uint32_t (&b)[2][2], const T* tile) {
  const int lane = threadIdx.x % kWarp;
  uint32_t all[4];
  ldmatrix_x4_trans(all, tile + lane % 16 * kPitch<kSize> + lane / 16 * 8);
  b[0][0] = all[0], b[0][1] = all[1], b[1][0] = all[2], b[1][1] = all[3];
}

// The A operand of columns [0, 16) from two results of mma that cover them.
template <typename T>
__device__ inline void as_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = Mma<T>::pack(left[0], left[1]);
  a[1] = Mma<T>::pack(left[2], left[3]);
  a[2] = Mma<T>::pack(right[0], right[1]);
  a[3] = Mma<T>::pack(right[2], right[3]);
}

// Where a warp's rows go: `count` of them, of `size` values, `stride` elements apart. With `packs`
// the layout allows 16-byte accesses.
template <typename T>
struct TargetRows {
  T* data;
  int64_t stride;
  int32_t count, size;
  bool packs;
};

// Writes a warp's sums of 16 rows, row g times `low` and row g + 8 times `high`; kColumns of each
// row are this warp's. `stage` is a part of a tile that only this warp uses: through it, rows leave
// in whole 16-byte accesses.
template <int kSize, int kColumns, typename T>
__device__ inline void store_rows(T* stage, const float (&sums)[kColumns / 8][4], float low,
                                  float high, const TargetRows<T>& to_rows) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  BALORA_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) {
    T* at = stage + g * kPitch<kSize> + n * 8 + 2 * t;
    *reinterpret_cast<uint32_t*>(at) = Mma<T>::pack(sums[n][0] * low, sums[n][1] * low);
    *reinterpret_cast<uint32_t*>(at + 8 * kPitch<kSize>) =
        Mma<T>::pack(sums[n][2] * high, sums[n][3] * high);
  }
  __syncwarp();
  constexpr int kChunks = kColumns / 8;
  for (int i = lane; i < 16 * kChunks; i += kWarp) {
    const int row = i / kChunks, column = i % kChunks * 8;
    if (row >= to_rows.count || column >= to_rows.size) continue;
    const T* from = stage + row * kPitch<kSize> + column;
    T* to = to_rows.data + row * to_rows.stride + column;
    if (to_rows.packs) {
      *reinterpret_cast<Pack<T, 8>*>(to) = *reinterpret_cast<const Pack<T, 8>*>(from);
    } else {
      for (int e = 0; e < 8 && column + e < to_rows.size; ++e) to[e] = from[e];
    }
  }
  __syncwarp();
}

}  // namespace balora::cuda::attention
