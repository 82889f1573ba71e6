#include "kernels/cpu/attention/relative_rows.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/vec_math.h"

namespace balora::relative {
namespace {

template <typename A>
BALORA_INLINE void score_row(const TermRow<A>& t, A scale, int64_t keys, A* scores) {
  if (t.to_position) {
    for (int64_t j = 0; j < keys; ++j) scores[j] += t.to_position[t.index[j]];
  }
  if (t.bias) {
#pragma omp simd
    for (int64_t j = 0; j < keys; ++j) scores[j] = scale * scores[j] + t.bias[j];
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
BALORA_INLINE void gradient_row(A lse, A delta, int64_t keys, int64_t padded, A* s, A* dp) {
#pragma omp simd
  for (int64_t j = 0; j < keys; ++j) {
    s[j] = vexp(s[j] - lse);
    dp[j] = s[j] * (dp[j] - delta);
  }
  std::fill(s + keys, s + padded, A(0));
  std::fill(dp + keys, dp + padded, A(0));
}

// target_clones cannot mark a template, so each type gets plain functions of its own.
#define ROWS(A)                                                                              \
  BALORA_SIMD void score_simd(const TermRow<A>& t, A scale, int64_t keys, A* scores) {       \
    score_row<A>(t, scale, keys, scores);                                                    \
  }                                                                                          \
  BALORA_SIMD A softmax_simd(int64_t keys, int64_t padded, A* s) {                           \
    return softmax_row<A>(keys, padded, s);                                                  \
  }                                                                                          \
  BALORA_SIMD void gradient_simd(A lse, A delta, int64_t keys, int64_t padded, A* s, A* d) { \
    gradient_row<A>(lse, delta, keys, padded, s, d);                                         \
  }
ROWS(float)
ROWS(double)
#undef ROWS

}  // namespace

template <typename A>
void RowLoops<A>::score(const TermRow<A>& terms, A scale, int64_t keys, A* scores) {
  score_simd(terms, scale, keys, scores);
}
template <typename A>
A RowLoops<A>::softmax(int64_t keys, int64_t padded, A* scores) {
  return softmax_simd(keys, padded, scores);
}
template <typename A>
void RowLoops<A>::gradient(A lse, A delta, int64_t keys, int64_t padded, A* scores, A* dp) {
  gradient_simd(lse, delta, keys, padded, scores, dp);
}

template <typename A>
void scatter_terms(const TermGradientRow<A>& t, A scale, int64_t keys, const A* ds) {
  if (t.bias) {
    for (int64_t j = 0; j < keys; ++j) t.bias[j] += ds[j];
  }
  if (!t.to_position) return;
  for (int64_t j = 0; j < keys; ++j) t.to_position[t.index[j]] += scale * ds[j];
}

template <typename A>
void add_from_key(const KeyTile& t, const A* from_key, A* scores, int64_t ld) {
  constexpr int64_t kBlock = 16;  // read along the queries, added along the keys
  A block[kBlock][kBlock];
  for (int64_t j = 0; j < t.keys; j += kBlock) {
    const int64_t keys = std::min(kBlock, t.keys - j);
    for (int64_t i = 0; i < t.queries; i += kBlock) {
      const int64_t queries = std::min(kBlock, t.queries - i);
      for (int64_t key = 0; key < keys; ++key) {
        const A* row = from_key + (j + key) * t.stride;
        const int32_t* index = t.index + (j + key - i);
        for (int64_t query = 0; query < queries; ++query) block[key][query] = row[index[-query]];
      }
      for (int64_t query = 0; query < queries; ++query) {
        A* row = scores + (i + query) * ld + j;
        for (int64_t key = 0; key < keys; ++key) row[key] += block[key][query];
      }
    }
  }
}

template <typename A>
void sum_from_key(const KeyTile& t, const A* transposed_ds, int64_t ld, A* from_key) {
  for (int64_t j = 0; j < t.keys; ++j) {
    A* row = from_key + j * t.stride;
    const int32_t* index = t.index + j;
    const A* ds = transposed_ds + j * ld;
    for (int64_t i = 0; i < t.queries; ++i) row[index[-i]] += ds[i];
  }
}

template struct RowLoops<float>;
template struct RowLoops<double>;
template void scatter_terms<float>(const TermGradientRow<float>&, float, int64_t, const float*);
template void scatter_terms<double>(const TermGradientRow<double>&, double, int64_t, const double*);
template void add_from_key<float>(const KeyTile&, const float*, float*, int64_t);
template void add_from_key<double>(const KeyTile&, const double*, double*, int64_t);
template void sum_from_key<float>(const KeyTile&, const float*, int64_t, float*);
template void sum_from_key<double>(const KeyTile&, const double*, int64_t, double*);

}  // namespace balora::relative
