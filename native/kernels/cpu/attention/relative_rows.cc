#include "kernels/cpu/attention/relative_rows.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention/relative_avx512.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "platform/cpu.h"

namespace balora::relative {
namespace {

template <typename A>
BALORA_INLINE void score_row(const A* bias, A scale, int64_t keys, A* scores) {
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < keys; ++j) scores[j] = scale * scores[j] + bias[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < keys; ++j) scores[j] *= scale;
  }
}

template <typename A>
BALORA_INLINE A softmax_row(int64_t keys, int64_t padded, A* s) {
  A highest = -std::numeric_limits<A>::infinity(), sum = 0;
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < keys; ++j) highest = s[j] > highest ? s[j] : highest;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < keys; ++j) {
    s[j] = vexp(s[j] - highest);
    sum += s[j];
  }
  const A factor = A(1) / sum;
#pragma omp simd
  for (int64_t j = 0; j < keys; ++j) s[j] *= factor;
  std::fill(s + keys, s + padded, A(0));
  return highest + vlog(sum);
}

template <typename A>
BALORA_INLINE void gradient_row(const GradientRow<A>& row) {
  A *s = row.scores, *dp = row.dp;
  const A lse = row.lse, delta = row.delta, scale = row.scale;
  if (row.dbias) {
    A* dbias = row.dbias;
#pragma omp simd
    for (int64_t j = 0; j < row.keys; ++j) {
      s[j] = vexp(s[j] - lse);
      const A ds = s[j] * (dp[j] - delta);
      dbias[j] += ds;
      dp[j] = scale * ds;
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < row.keys; ++j) {
      s[j] = vexp(s[j] - lse);
      dp[j] = scale * (s[j] * (dp[j] - delta));
    }
  }
  std::fill(s + row.keys, s + row.padded, A(0));
  std::fill(dp + row.keys, dp + row.padded, A(0));
}

constexpr int64_t kBlock = kPositionBlock;

template <typename A>
void add_of_keys_block(const PositionTile& t, const A* of_keys, A* scores, int64_t ld) {
  A block[kBlock][kBlock];
  for (int64_t j = 0; j < t.keys; ++j) {
    const A* row = of_keys + j * t.stride;
    for (int64_t i = 0; i < t.queries; ++i) block[j][i] = row[t.index[j - i]];
  }
  for (int64_t i = 0; i < t.queries; ++i) {
    for (int64_t j = 0; j < t.keys; ++j) scores[i * ld + j] += block[j][i];
  }
}

template <typename A>
void sum_of_keys_block(const PositionTile& t, const A* ds, int64_t ld, A* of_keys) {
  A block[kBlock][kBlock];
  for (int64_t i = 0; i < t.queries; ++i) {
    for (int64_t j = 0; j < t.keys; ++j) block[j][i] = ds[i * ld + j];
  }
  for (int64_t j = 0; j < t.keys; ++j) {
    A* row = of_keys + j * t.stride;
    for (int64_t i = 0; i < t.queries; ++i) row[t.index[j - i]] += block[j][i];
  }
}

// body(i, j, block) for the blocks of the tile, from query i and key j on.
template <typename Body>
void for_blocks(const PositionTile& t, const Body& body) {
  for (int64_t j = 0; j < t.keys; j += kBlock) {
    for (int64_t i = 0; i < t.queries; i += kBlock) {
      const int64_t queries = std::min(kBlock, t.queries - i), keys = std::min(kBlock, t.keys - j);
      body(i, j, PositionTile{t.index + (j - i), queries, keys, t.stride});
    }
  }
}

// Whole blocks of f32 in AVX-512 instructions, where this CPU has them.
#ifdef BALORA_TILES
#define IN_AVX512(loop)                                                        \
  if constexpr (std::is_same_v<A, float>) {                                    \
    const bool whole = t.queries == kBlock && t.keys == kBlock;                \
    if (whole && platform::cpu().uses(platform::kAvx512)) return avx512::loop; \
  }
#else
#define IN_AVX512(loop)
#endif

}  // namespace

template <typename A>
void RowLoops<A>::score(const A* bias, A scale, int64_t keys, A* scores) {
  at_level<&score_row<A>>(bias, scale, keys, scores);
}
template <typename A>
A RowLoops<A>::softmax(int64_t keys, int64_t padded, A* scores) {
  return at_level<&softmax_row<A>>(keys, padded, scores);
}
template <typename A>
void RowLoops<A>::gradient(const GradientRow<A>& row) {
  at_level<&gradient_row<A>>(row);
}

template <typename A>
void add_of_queries(const PositionTile& tile, const A* of_queries, A* scores, int64_t ld) {
  for_blocks(tile, [&](int64_t i, int64_t j, const PositionTile& t) {
    const A* from = of_queries + i * t.stride;
    A* to = scores + i * ld + j;
    IN_AVX512(add_of_queries(t, from, to, ld))
    for (int64_t q = 0; q < t.queries; ++q) {
      for (int64_t k = 0; k < t.keys; ++k) to[q * ld + k] += from[q * t.stride + t.index[k - q]];
    }
  });
}

template <typename A>
void add_of_keys(const PositionTile& tile, const A* of_keys, A* scores, int64_t ld) {
  for_blocks(tile, [&](int64_t i, int64_t j, const PositionTile& t) {
    const A* from = of_keys + j * t.stride;
    A* to = scores + i * ld + j;
    IN_AVX512(add_of_keys(t, from, to, ld))
    add_of_keys_block(t, from, to, ld);
  });
}

template <typename A>
void sum_of_queries(const PositionTile& tile, const A* ds, int64_t ld, A* of_queries) {
  for_blocks(tile, [&](int64_t i, int64_t j, const PositionTile& t) {
    const A* from = ds + i * ld + j;
    A* to = of_queries + i * t.stride;
    IN_AVX512(sum_of_queries(t, from, ld, to))
    for (int64_t q = 0; q < t.queries; ++q) {
      for (int64_t k = 0; k < t.keys; ++k) to[q * t.stride + t.index[k - q]] += from[q * ld + k];
    }
  });
}

template <typename A>
void sum_of_keys(const PositionTile& tile, const A* ds, int64_t ld, A* of_keys) {
  for_blocks(tile, [&](int64_t i, int64_t j, const PositionTile& t) {
    const A* from = ds + i * ld + j;
    A* to = of_keys + j * t.stride;
    IN_AVX512(sum_of_keys(t, from, ld, to))
    sum_of_keys_block(t, from, ld, to);
  });
}
#undef IN_AVX512

template struct RowLoops<float>;
template struct RowLoops<double>;
#define LOOPS(A)                                                               \
  template void add_of_queries<A>(const PositionTile&, const A*, A*, int64_t); \
  template void add_of_keys<A>(const PositionTile&, const A*, A*, int64_t);    \
  template void sum_of_queries<A>(const PositionTile&, const A*, int64_t, A*); \
  template void sum_of_keys<A>(const PositionTile&, const A*, int64_t, A*);
LOOPS(float)
LOOPS(double)
#undef LOOPS

}  // namespace balora::relative
