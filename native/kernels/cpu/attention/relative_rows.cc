#include "kernels/cpu/attention/relative_rows.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"

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
void add_of_queries_block(const PositionTile& t, const A* of_queries, A* scores, int64_t ld) {
  for (int64_t i = 0; i < t.queries; ++i) {
    const A* row = of_queries + i * t.stride;
    for (int64_t j = 0; j < t.keys; ++j) scores[i * ld + j] += row[t.index[j - i]];
  }
}

template <typename A>
void sum_of_queries_block(const PositionTile& t, const A* ds, int64_t ld, A* of_queries) {
  for (int64_t i = 0; i < t.queries; ++i) {
    A* row = of_queries + i * t.stride;
    for (int64_t j = 0; j < t.keys; ++j) row[t.index[j - i]] += ds[i * ld + j];
  }
}

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

template <typename A>
constexpr PositionCore<A> kAnyPositions = {add_of_queries_block, add_of_keys_block,
                                           sum_of_queries_block, sum_of_keys_block};

constexpr Core<const PositionCore<float>*> kPositions[] = {
    BALORA_X86("avx512", platform::kAvx512, &x86::avx512_positions),
    {"any", 0, &kAnyPositions<float>},
};

template <typename A>
const PositionCore<A>& core_of(const PositionTile& block) {
  if constexpr (std::is_same_v<A, float>) {
    static const PositionCore<float>& chosen = *first_core(kPositions).run;
    if (block.queries == kBlock && block.keys == kBlock) return chosen;
  }
  return kAnyPositions<A>;
}

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
    core_of<A>(t).add_of_queries(t, from, to, ld);
  });
}

template <typename A>
void add_of_keys(const PositionTile& tile, const A* of_keys, A* scores, int64_t ld) {
  for_blocks(tile, [&](int64_t i, int64_t j, const PositionTile& t) {
    const A* from = of_keys + j * t.stride;
    A* to = scores + i * ld + j;
    core_of<A>(t).add_of_keys(t, from, to, ld);
  });
}

template <typename A>
void sum_of_queries(const PositionTile& tile, const A* ds, int64_t ld, A* of_queries) {
  for_blocks(tile, [&](int64_t i, int64_t j, const PositionTile& t) {
    const A* from = ds + i * ld + j;
    A* to = of_queries + i * t.stride;
    core_of<A>(t).sum_of_queries(t, from, ld, to);
  });
}

template <typename A>
void sum_of_keys(const PositionTile& tile, const A* ds, int64_t ld, A* of_keys) {
  for_blocks(tile, [&](int64_t i, int64_t j, const PositionTile& t) {
    const A* from = ds + i * ld + j;
    A* to = of_keys + j * t.stride;
    core_of<A>(t).sum_of_keys(t, from, ld, to);
  });
}

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

namespace balora {
BALORA_IMPLEMENTATIONS(relative_positions, relative::kPositions)
}  // namespace balora
