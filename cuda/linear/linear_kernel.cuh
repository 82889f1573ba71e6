// The tensor-core kernel of the linears: C (M,N) = sum over terms of A_t (M,K_t) B_t (K_t,N) in
// bf16, one f32 sum, then an f32 addend, the scale and the bias of the columns and one rounding.
// Terms are walked as one long inner extent, so a base product and its low-rank parts share the
// pipeline and the accumulators. A block of four warps makes a Tile x Tile chunk of C in steps of
// 32 of the inner extent, each warp a quarter of it by mma m16n8k16. Of a step, 2 * Tile * 32
// elements come by cp.async into one of three stages of shared memory and go to registers by
// ldmatrix. Tile 128: 48 KiB and 128 accumulators a thread, two blocks a multiprocessor (8.0: 512
// clocks of mma beside 256 of ldmatrix and 128 of filling a step; warps of 64 x 32 would need 384
// of ldmatrix). Tile 64 is for results too small to give every multiprocessor a block of the large
// one. Shared rows hold 16-byte chunks in an order xored with the row, so that the eight rows of an
// ldmatrix lie in different banks. Rows that are not 16-byte aligned are loaded element by element.
#pragma once
#include "linear/linear_sum.cuh"

namespace balora::cuda {

constexpr int kStep = 32;  // of the inner extent
constexpr int kStages = 3;
constexpr int kThreads = 128;
constexpr int kChunk = 8;  // elements in 16 bytes

// Shared offsets of a 16-byte chunk: in tiles of rows along the inner extent, and along N.
__device__ inline int inner_offset(int row, int chunk) {
  return row * kStep + (chunk ^ (row >> 1 & 3)) * kChunk;
}
template <int kTile>
__device__ inline int outer_offset(int row, int chunk) {
  return row * kTile + (chunk ^ (row & 7)) * kChunk;
}

// 16 bytes to shared memory; elements from `valid` on are zero.
__device__ inline void fetch_chunk(bf16* shared, const bf16* from, const bf16* base, int valid,
                                   bool aligned) {
  if (aligned) {
    cp_async16(shared, valid > 0 ? from : base, 2 * valid);
    return;
  }
  Pack<bf16, kChunk> chunk;
  BALORA_UNROLL
  for (int i = 0; i < kChunk; ++i) chunk.at[i] = i < valid ? from[i] : bf16{0};
  *reinterpret_cast<Pack<bf16, kChunk>*>(shared) = chunk;
}

__device__ inline int clamp_chunk(int64_t left) {
  return left >= kChunk ? kChunk : left > 0 ? static_cast<int>(left) : 0;
}

// Walks the terms' inner extents in steps.
struct SumCursor {
  int term = 0;
  int64_t at = 0;  // of the term's inner extent
  __device__ void advance(const SumArgs& args) {
    at += kStep;
    if (at < args.terms[term].k) return;
    at = 0;
    ++term;
  }
};

template <int kTile>
class SumTile {
 public:
  static constexpr int kWarpTile = kTile / 2;
  static constexpr int kRows = kWarpTile / 16, kCols = kWarpTile / 8;  // mma tiles of a warp
  static constexpr int kSide = kTile * kStep;                          // elements of A or B a stage

  __device__ SumTile(const SumArgs& args, bf16* shared, int64_t row, int64_t column)
      : args_(args), shared_(shared), row_(row), column_(column) {}

  __device__ void run() {
    BALORA_UNROLL
    for (int i = 0; i < kRows; ++i) {
      BALORA_UNROLL
      for (int j = 0; j < kCols; ++j) {
        BALORA_UNROLL
        for (int e = 0; e < 4; ++e) sums_[i][j][e] = 0;
      }
    }
    SumCursor fetched, used;
    for (int s = 0; s < kStages - 1; ++s) fetch(fetched, s);
    for (int step = 0; step < args_.steps; ++step) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
      fetch(fetched, (step + kStages - 1) % kStages);
      multiply(args_.terms[used.term].b_inner, step % kStages);
      used.advance(args_);
    }
    cp_async_wait<0>();
    write();
  }

 private:
  __device__ void fetch(SumCursor& cursor, int stage) {
    if (cursor.term < args_.count) {
      const SumTerm& term = args_.terms[cursor.term];
      bf16* to = shared_ + stage * 2 * kSide;
      fetch_inner(term.a, term.a_stride, args_.m, row_, term, cursor.at, to, term.a_aligned);
      if (term.b_inner) {
        fetch_inner(term.b, term.b_stride, args_.n, column_, term, cursor.at, to + kSide,
                    term.b_aligned);
      } else {
        fetch_outer(term, cursor.at, to + kSide);
      }
      cursor.advance(args_);
    }
    cp_async_commit();
  }

  // kTile rows from `first` on, kStep elements each.
  __device__ void fetch_inner(const bf16* x, int64_t stride, int64_t rows, int64_t first,
                              const SumTerm& term, int64_t at, bf16* to, bool aligned) {
    const int chunk = threadIdx.x % 4, row = threadIdx.x / 4;
    const int valid = clamp_chunk(term.k - at - chunk * kChunk);
    const bf16* from = x + (first + row) * stride + at + chunk * kChunk;
    BALORA_UNROLL
    for (int i = 0; i < kTile / 32; ++i) {
      fetch_chunk(to + inner_offset(row + 32 * i, chunk), from + 32 * i * stride, x,
                  first + row + 32 * i < rows ? valid : 0, aligned);
    }
  }

  // kStep rows of B, kTile elements of N each.
  __device__ void fetch_outer(const SumTerm& term, int64_t at, bf16* to) {
    constexpr int kChunks = kTile / kChunk, kRowsAtOnce = kThreads / kChunks;
    const int chunk = threadIdx.x % kChunks, row = threadIdx.x / kChunks;
    const int valid = clamp_chunk(args_.n - column_ - chunk * kChunk);
    const bf16* from = term.b + (at + row) * term.b_stride + column_ + chunk * kChunk;
    BALORA_UNROLL
    for (int i = 0; i < kStep / kRowsAtOnce; ++i) {
      const int shared_row = row + kRowsAtOnce * i;
      fetch_chunk(to + outer_offset<kTile>(shared_row, chunk),
                  from + kRowsAtOnce * i * term.b_stride, term.b,
                  at + shared_row < term.k ? valid : 0, term.b_aligned);
    }
  }

  __device__ void multiply(bool b_inner, int stage) {
    const bf16* a = shared_ + stage * 2 * kSide;
    const bf16* b = a + kSide;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int top = warp / 2 * kWarpTile, left = warp % 2 * kWarpTile;
    BALORA_UNROLL
    for (int k = 0; k < kStep; k += 16) {
      uint32_t fa[kRows][4], fb[kCols][2];
      BALORA_UNROLL
      for (int i = 0; i < kRows; ++i) {
        ldmatrix_x4(fa[i], a + inner_offset(top + 16 * i + (lane & 15), k / kChunk + (lane >> 4)));
      }
      BALORA_UNROLL
      for (int j = 0; j < kCols; j += 2) {
        uint32_t pair[4];
        if (b_inner) {
          ldmatrix_x4(pair, b + inner_offset(left + 8 * j + (lane & 7) + (lane >> 4) * 8,
                                             k / kChunk + (lane >> 3 & 1)));
        } else {
          ldmatrix_x4_trans(
              pair, b + outer_offset<kTile>(k + (lane & 15), left / kChunk + j + (lane >> 4)));
        }
        fb[j][0] = pair[0], fb[j][1] = pair[1], fb[j + 1][0] = pair[2], fb[j + 1][1] = pair[3];
      }
      BALORA_UNROLL
      for (int i = 0; i < kRows; ++i) {
        BALORA_UNROLL
        for (int j = 0; j < kCols; ++j) mma_bf16(sums_[i][j], fa[i], fb[j]);
      }
    }
  }

  __device__ void write() {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int64_t top = row_ + warp / 2 * kWarpTile + lane / 4;
    const int64_t left = column_ + warp % 2 * kWarpTile + 2 * (lane % 4);
    BALORA_UNROLL
    for (int i = 0; i < kRows; ++i) {
      BALORA_UNROLL
      for (int j = 0; j < kCols; ++j) {
        write_pair(top + 16 * i, left + 8 * j, sums_[i][j][0], sums_[i][j][1]);
        write_pair(top + 16 * i + 8, left + 8 * j, sums_[i][j][2], sums_[i][j][3]);
      }
    }
  }

  __device__ void write_pair(int64_t row, int64_t column, float first, float second) {
    if (row >= args_.m || column >= args_.n) return;
    const bool both = column + 1 < args_.n;
    if (args_.addend) {
      const float* from = args_.addend + row * args_.n + column;
      first += from[0];
      if (both) second += from[1];
    }
    if (args_.unscaled) write_bf16(args_.unscaled, row, column, first, second);
    if (args_.scale) {
      first *= args_.scale[column];
      if (both) second *= args_.scale[column + 1];
    }
    if (args_.bias) {
      first += load(args_.bias[column]);
      if (both) second += load(args_.bias[column + 1]);
    }
    if (args_.wide) {
      float* to = args_.wide + row * args_.n + column;
      to[0] = first;
      if (both) to[1] = second;
      return;
    }
    write_bf16(args_.c, row, column, first, second);
  }

  // Two neighbours of a bf16 (M,N), the second if it is inside.
  __device__ void write_bf16(bf16* c, int64_t row, int64_t column, float first, float second) {
    bf16* to = c + row * args_.n + column;
    const bool both = column + 1 < args_.n;
    if (both && args_.pairs) {
      *reinterpret_cast<Pack<bf16, 2>*>(to) = {store<bf16>(first), store<bf16>(second)};
      return;
    }
    to[0] = store<bf16>(first);
    if (both) to[1] = store<bf16>(second);
  }

  const SumArgs& args_;
  bf16* shared_;
  int64_t row_, column_;
  float sums_[kRows][kCols][4];
};

// Blocks go through C in bands of eight tiles of rows, down a band's columns first, so that blocks
// in work at the same time share rows of A and columns of B in the L2 cache.
template <int kTile>
__global__ void __launch_bounds__(kThreads, kTile == 128 ? 2 : 4) sum_products(SumArgs args) {
  constexpr int64_t kBand = 8;
  const int64_t rows = (args.m + kTile - 1) / kTile, cols = (args.n + kTile - 1) / kTile;
  const int64_t band = blockIdx.x / (kBand * cols), within = blockIdx.x % (kBand * cols);
  const int64_t height = min(rows - band * kBand, kBand);
  const int64_t row = band * kBand + within % height, column = within / height;
  SharedMemory memory;
  bf16* shared = memory.array<bf16>(kStages * 2 * kTile * kStep);
  SumTile<kTile> tile(args, shared, row * kTile, column * kTile);
  tile.run();
}

}  // namespace balora::cuda
