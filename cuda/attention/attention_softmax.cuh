// The arithmetic of attention's forward on tensor cores: a warp's queries against one tile of keys,
// scores, online softmax in base 2 and sums, all in registers.
#pragma once
#include "attention/attention_mma.cuh"

namespace balora::cuda::attention {

template <int kSize>
constexpr int kKeys = kSize > 64 ? 32 : 64;
template <int kSize>
constexpr int kRowTiles = kSize > 128 ? 1 : 2;  // of 16 queries, a warp
template <int kSize>
constexpr int kQueries = 16 * kMmaWarps * kRowTiles<kSize>;

// A warp's running softmax: of each of its row tiles rows g and g + 8.
template <int kSize>
struct Sums {
  float out[kRowTiles<kSize>][kSize / 8][4] = {};
  float base[kRowTiles<kSize>][2];        // what probabilities are relative to
  float total[kRowTiles<kSize>][2] = {};  // of this lane's columns
};

template <int kSize>
using Scores = float[kRowTiles<kSize>][kKeys<kSize> / 8][4];

template <int kSize, typename T>
__device__ inline void multiply_keys(Scores<kSize>& s, const T* q, const T* k) {
  BALORA_UNROLL
  for (int d = 0; d < kSize; d += 16) {
    uint32_t a[kRowTiles<kSize>][4];
    BALORA_UNROLL
    for (int r = 0; r < kRowTiles<kSize>; ++r) {
      load_a<kSize>(a[r], q + 16 * r * kPitch<kSize> + d);
    }
    BALORA_UNROLL
    for (int n = 0; n < kKeys<kSize> / 16; ++n) {
      uint32_t b[2][2];
      load_b<kSize>(b, k + 16 * n * kPitch<kSize> + d);
      BALORA_UNROLL
      for (int r = 0; r < kRowTiles<kSize>; ++r) {
        Mma<T>::multiply(s[r][2 * n], a[r], b[0]);
        Mma<T>::multiply(s[r][2 * n + 1], a[r], b[1]);
      }
    }
  }
}

// Scores of the queries from `first` on become multiples of log 2, masked; what remains to multiply
// them with is the result.
template <int kSize>
__device__ inline float finish_scores(Scores<kSize>& s, const Geometry<float>& g, int32_t first,
                                      int32_t key, int32_t rows) {
  const bool plain = g.softcap == 0 && g.scale > 0;
  const bool whole =
      g.mask.all(first, first + 16 * kRowTiles<kSize>, key, key + kKeys<kSize>, rows);
  const int lane = threadIdx.x % kWarp;
  if (plain && whole) return g.scale * kLog2e;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int e = 0; e < 4 * (kKeys<kSize> / 8); ++e) {
      float& score = s[r][e / 4][e % 4];
      if (!plain) {
        score *= g.scale;
        if (g.softcap != 0) score = g.softcap * quick_tangent(score / g.softcap);
        score *= kLog2e;
      }
      const int32_t query = first + 16 * r + lane / 4 + e % 4 / 2 * 8;
      const int32_t column = key + e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (!whole && !g.mask.sees(query, column, rows)) score = -INFINITY;
    }
  }
  return plain ? g.scale * kLog2e : 1.0f;
}

// Raises the bases of rows whose highest score left them 2^8 behind, the first one from -infinity,
// and brings their sums along: seldom, so it is worth a branch. Probabilities up to 2^8 are as
// exact as those up to 1.
template <int kSize>
__device__ inline void raise_bases(const Scores<kSize>& s, Sums<kSize>& sums, float factor) {
  float raised[kRowTiles<kSize>][2];
  bool any = false;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float highest = -INFINITY;
      BALORA_UNROLL
      for (int n = 0; n < kKeys<kSize> / 8; ++n) {
        highest = fmaxf(highest, fmaxf(s[r][n][2 * half], s[r][n][2 * half + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
      const float base = sums.base[r][half];
      const bool raise = highest * factor > base * factor + 8;
      raised[r][half] = raise ? highest : base;
      any |= raise;
    }
  }
  if (!__any_sync(kAllLanes, any)) return;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      // Where nothing was seen yet both are -infinity.
      const float now = raised[r][half], before = sums.base[r][half];
      const float fade = now == before ? 1.0f : exp2_approx((before - now) * factor);
      sums.base[r][half] = now;
      sums.total[r][half] *= fade;
      BALORA_UNROLL
      for (int n = 0; n < kSize / 8; ++n) {
        sums.out[r][n][2 * half] *= fade;
        sums.out[r][n][2 * half + 1] *= fade;
      }
    }
  }
}

// Scores become probabilities relative to the bases.
template <int kSize>
__device__ inline void soften(Scores<kSize>& s, Sums<kSize>& sums, float factor) {
  raise_bases<kSize>(s, sums, factor);
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float base = sums.base[r][half];
      const float shift = base == -INFINITY ? 0.0f : base * factor;
      BALORA_UNROLL
      for (int e = 0; e < 2 * (kKeys<kSize> / 8); ++e) {
        float& score = s[r][e / 2][2 * half + e % 2];
        score = exp2_approx(score * factor - shift);
        sums.total[r][half] += score;
      }
    }
  }
}

template <int kSize, typename T>
__device__ inline void multiply_values(Sums<kSize>& sums, const Scores<kSize>& p, const T* v) {
  BALORA_UNROLL
  for (int j = 0; j < kKeys<kSize> / 16; ++j) {
    uint32_t a[kRowTiles<kSize>][4];
    BALORA_UNROLL
    for (int r = 0; r < kRowTiles<kSize>; ++r) as_a<T>(a[r], p[r][2 * j], p[r][2 * j + 1]);
    BALORA_UNROLL
    for (int n = 0; n < kSize / 16; ++n) {
      uint32_t b[2][2];
      load_b_turned<kSize>(b, v + 16 * j * kPitch<kSize> + 16 * n);
      BALORA_UNROLL
      for (int r = 0; r < kRowTiles<kSize>; ++r) {
        Mma<T>::multiply(sums.out[r][2 * n], a[r], b[0]);
        Mma<T>::multiply(sums.out[r][2 * n + 1], a[r], b[1]);
      }
    }
  }
}

}  // namespace balora::cuda::attention
