// The arithmetic of attention's backward on tensor cores: where a block and its warps work, and a
// warp's 16 rows that stay against one tile that moves, probabilities, gradients of scores and
// sums, all in registers.
#pragma once
#include "attention/attention_mma.cuh"

namespace balora::cuda::attention::gradient {

template <typename T>
struct Operands {
  Heads<const T> dout, q, k, v;
  Heads<T> dq, dk, dv;
  const float* lse;    // (M,H)
  const float* delta;  // (M,H)
  Tiles tiles;
  Geometry<float> g;
  bool packs;  // rows move in 16-byte accesses
};

template <int kSize, bool kOfKeys>
struct Plan {
  static constexpr int kColumnWarps = kOfKeys && kSize > 128 ? 2 : 1;
  static constexpr int kRows = 16 * kMmaWarps / kColumnWarps;  // that stay
  static constexpr int kColumns = kSize / kColumnWarps;        // of a warp's sums
  static constexpr int kMoving = kSize > 64 ? 32 : 64;
  static constexpr int kStages = kSize > 128 ? 1 : 2;
};

// Where a block works, and a warp in it. Steps go over the heads and, in each, over the tiles that
// move, from `from` on.
struct Place {
  Tile tile;
  int32_t head;  // of the rows that stay
  int32_t from, steps_of_head, steps;
  int32_t row;     // of the warp, the first
  int32_t column;  // of the warp's sums, the first
};

template <int kSize, bool kOfKeys, typename T>
__device__ Place place_of(const Operands<T>& o) {
  using P = Plan<kSize, kOfKeys>;
  const int32_t heads = kOfKeys ? o.g.heads / o.g.group : o.g.heads;
  const auto index = static_cast<int32_t>(blockIdx.x / heads);
  Place p;
  // The tiles with the most to do start first: early keys, late queries.
  p.tile = o.tiles.data[kOfKeys ? index : o.tiles.count - 1 - index];
  p.head = static_cast<int32_t>(blockIdx.x % heads);
  const int32_t end = min(p.tile.rows, p.tile.first + P::kRows);
  const Mask& mask = o.g.mask;
  const int32_t first = kOfKeys ? mask.first_query(p.tile.first) : mask.first_key(p.tile.first);
  const int32_t last =
      kOfKeys ? mask.last_query(end - 1, p.tile.rows) : mask.last_key(end - 1, p.tile.rows);
  p.from = first / P::kMoving * P::kMoving;
  if (kOfKeys) p.from = max(p.from, p.tile.skip);
  const bool any = p.tile.first < end && p.from < last;
  p.steps_of_head = any ? (last - p.from + P::kMoving - 1) / P::kMoving : 0;
  p.steps = p.steps_of_head * (kOfKeys ? o.g.group : 1);
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarp;
  p.row = p.tile.first + warp / P::kColumnWarps * 16;
  p.column = warp % P::kColumnWarps * P::kColumns;
  return p;
}

template <int kSize, bool kOfKeys>
struct Sums {
  static constexpr int kParts = Plan<kSize, kOfKeys>::kColumns / 8;
  float ds[kParts][4] = {};               // of dk or dq
  float p[kOfKeys ? kParts : 1][4] = {};  // of dv
};

// What is known of the queries that this lane has scores of, by the pair of columns (keys stay) or
// by the half of the rows: lse in units of log 2, delta.
template <int kSize, bool kOfKeys>
struct QueryNumbers {
  static constexpr int kPairs = kOfKeys ? Plan<kSize, kOfKeys>::kMoving / 8 : 1;
  float lse[kPairs][2], delta[kPairs][2];

  template <typename T>
  __device__ void read(const Operands<T>& o, const Tile& tile, int32_t first, int32_t head) {
    const int lane = threadIdx.x % kWarp;
    BALORA_UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) {
      const int32_t query = first + (kOfKeys ? i / 2 * 8 + lane % 4 * 2 + i % 2 : lane / 4 + 8 * i);
      const bool there = query < tile.rows;
      const int64_t at = tile.query(query) * o.g.heads + head;
      lse[i / 2][i % 2] = there ? o.lse[at] * kLog2e : 0.0f;
      delta[i / 2][i % 2] = there ? o.delta[at] : 0.0f;
    }
  }
};

template <int kColumns>
using Scores = float[kColumns / 8][4];

// s = staying[0] moving[0]^T, dp = staying[1] moving[1]^T for a warp's 16 rows.
template <int kSize, int kMoving, typename T>
__device__ inline void multiply_rows(Scores<kMoving>& s, Scores<kMoving>& dp, const T* staying0,
                                     const T* staying1, const T* moving0, const T* moving1) {
  BALORA_UNROLL
  for (int d = 0; d < kSize; d += 16) {
    uint32_t a0[4], a1[4];
    load_a<kSize>(a0, staying0 + d);
    load_a<kSize>(a1, staying1 + d);
    BALORA_UNROLL
    for (int n = 0; n < kMoving / 16; ++n) {
      uint32_t b[2][2];
      load_b<kSize>(b, moving0 + 16 * n * kPitch<kSize> + d);
      Mma<T>::multiply(s[2 * n], a0, b[0]);
      Mma<T>::multiply(s[2 * n + 1], a0, b[1]);
      load_b<kSize>(b, moving1 + 16 * n * kPitch<kSize> + d);
      Mma<T>::multiply(dp[2 * n], a1, b[0]);
      Mma<T>::multiply(dp[2 * n + 1], a1, b[1]);
    }
  }
}

// s becomes p, dp becomes ds without its scale; 0 where a query does not see a key.
template <int kSize, bool kOfKeys, int kMoving>
__device__ inline void differentiate(Scores<kMoving>& s, Scores<kMoving>& dp, const Place& place,
                                     const Geometry<float>& g, int32_t moved,
                                     const QueryNumbers<kSize, kOfKeys>& of) {
  const Mask& mask = g.mask;
  const int32_t rows = place.tile.rows, row_end = place.row + 16, moved_end = moved + kMoving;
  const bool whole = kOfKeys
                         ? mask.all(moved, moved_end, place.row, row_end, rows) && row_end <= rows
                         : mask.all(place.row, row_end, moved, moved_end, rows);
  const int lane = threadIdx.x % kWarp;
  BALORA_UNROLL
  for (int i = 0; i < 4 * (kMoving / 8); ++i) {
    const int n = i / 4, e = i % 4;
    const float lse = kOfKeys ? of.lse[n % of.kPairs][e % 2] : of.lse[0][e / 2];
    const float delta = kOfKeys ? of.delta[n % of.kPairs][e % 2] : of.delta[0][e / 2];
    float slope = 1, p = 0;
    if (g.softcap == 0) {
      p = exp2_approx(s[n][e] * (g.scale * kLog2e) - lse);
    } else {
      const float ratio = quick_tangent(s[n][e] * g.scale / g.softcap);
      p = exp2_approx(g.softcap * ratio * kLog2e - lse);
      slope = 1 - ratio * ratio;
    }
    float ds = p * (dp[n][e] - delta) * slope;
    if (!whole) {
      const int32_t row = place.row + lane / 4 + e / 2 * 8;
      const int32_t column = moved + n * 8 + lane % 4 * 2 + e % 2;
      if (!mask.sees(kOfKeys ? column : row, kOfKeys ? row : column, rows)) p = ds = 0;
    }
    s[n][e] = p, dp[n][e] = ds;
  }
}

// Adds p moving[1] (keys stay) and ds moving[0], columns from the warp's first on.
template <int kSize, bool kOfKeys, int kMoving, typename T>
__device__ inline void multiply_columns(Sums<kSize, kOfKeys>& sums, const Scores<kMoving>& p,
                                        const Scores<kMoving>& ds, const T* moving0,
                                        const T* moving1) {
  BALORA_UNROLL
  for (int j = 0; j < kMoving / 16; ++j) {
    uint32_t a_ds[4], a_p[4];
    as_a<T>(a_ds, ds[2 * j], ds[2 * j + 1]);
    if constexpr (kOfKeys) as_a<T>(a_p, p[2 * j], p[2 * j + 1]);
    BALORA_UNROLL
    for (int n = 0; n < sums.kParts / 2; ++n) {
      uint32_t b[2][2];
      load_b_turned<kSize>(b, moving0 + 16 * j * kPitch<kSize> + 16 * n);
      Mma<T>::multiply(sums.ds[2 * n], a_ds, b[0]);
      Mma<T>::multiply(sums.ds[2 * n + 1], a_ds, b[1]);
      if constexpr (kOfKeys) {
        load_b_turned<kSize>(b, moving1 + 16 * j * kPitch<kSize> + 16 * n);
        Mma<T>::multiply(sums.p[2 * n], a_p, b[0]);
        Mma<T>::multiply(sums.p[2 * n + 1], a_p, b[1]);
      }
    }
  }
}

}  // namespace balora::cuda::attention::gradient
