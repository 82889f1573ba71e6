// Exchanges with the position tables (positions.h) in AVX-512 instructions.
#include <algorithm>

#include "kernels/cpu/attention/positions.h"
#include "kernels/cpu/runtime/wide.h"
#include "kernels/cpu/runtime/x86/targets.h"

namespace balora::attention::x86 {
namespace {

constexpr int64_t kLanes = kPositionBlock;
constexpr __mmask16 kAll = 0xffff;

AVX512_TARGET BALORA_INLINE __m512i lane_numbers() {
  return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}
AVX512_TARGET BALORA_INLINE __m512i reversed_lanes() {
  return _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// Elements index[0..15] of a row of `stride` floats. Buckets of consecutive distances lie within 16
// elements, mostly: these are one vector, whose lanes change places.
AVX512_TARGET BALORA_INLINE __m512 gathered(const int32_t* index, const float* row,
                                            int64_t stride) {
  const __m512i at = _mm512_loadu_si512(index);
  const int32_t low = std::min(index[0], index[kLanes - 1]);
  const int32_t first = std::min(low, static_cast<int32_t>(stride - kLanes));
  const __m512i lanes = _mm512_sub_epi32(at, _mm512_set1_epi32(first));
  if (_mm512_cmplt_epu32_mask(lanes, _mm512_set1_epi32(kLanes)) == kAll) {
    return _mm512_permutexvar_ps(lanes, _mm512_loadu_ps(row + first));
  }
  return _mm512_i32gather_ps(at, row, sizeof(float));
}

// Lane l adds lane l - kCount where that belongs to its bucket. Lanes of a bucket lie side by side.
template <int kCount>
AVX512_TARGET BALORA_INLINE __m512 add_of_bucket(__m512i at, __m512 sums) {
  constexpr int kTurn = kLanes - kCount;
  constexpr auto kThere = static_cast<__mmask16>(kAll << kCount);
  const __mmask16 same =
      _mm512_mask_cmpeq_epi32_mask(kThere, at, _mm512_alignr_epi32(at, at, kTurn));
  const __m512i bits = _mm512_castps_si512(sums);
  return _mm512_mask_add_ps(sums, same, sums,
                            _mm512_castsi512_ps(_mm512_alignr_epi32(bits, bits, kTurn)));
}

AVX512_TARGET BALORA_INLINE void add_to(float* to, __m512 values) {
  _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), values));
}

// Where steps of the index are 0 or 1: the last lane of a bucket gets the sum of the others, and
// the buckets are consecutive elements of the row.
AVX512_TARGET BALORA_INLINE bool add_buckets(__m512i at, int32_t first, __m512 values, float* row) {
  const __m512i next =
      _mm512_permutexvar_epi32(_mm512_add_epi32(lane_numbers(), _mm512_set1_epi32(1)), at);
  const __m512i step = _mm512_sub_epi32(next, at);
  constexpr __mmask16 kInner = 0x7fff;
  if ((_mm512_cmple_epu32_mask(step, _mm512_set1_epi32(1)) & kInner) != kInner) return false;
  __m512 sums = add_of_bucket<1>(at, values);
  sums = add_of_bucket<2>(at, sums);
  sums = add_of_bucket<4>(at, sums);
  sums = add_of_bucket<8>(at, sums);
  const auto last = static_cast<__mmask16>(_mm512_test_epi32_mask(step, step) | 0x8000);
  const auto buckets = static_cast<__mmask16>((1u << __builtin_popcount(last)) - 1);
  const __m512 before = _mm512_maskz_loadu_ps(buckets, row + first);
  _mm512_mask_storeu_ps(row + first, buckets,
                        _mm512_add_ps(before, _mm512_maskz_compress_ps(last, sums)));
  return true;
}

// row[index[l]] += lane l
AVX512_TARGET BALORA_INLINE void scatter(const int32_t* index, __m512 values, float* row) {
  const __m512i at = _mm512_loadu_si512(index), lanes = lane_numbers();
  const int32_t first = index[0], last = index[kLanes - 1];
  const __m512i start = _mm512_set1_epi32(first);
  if (_mm512_cmpeq_epi32_mask(_mm512_sub_epi32(at, lanes), start) == kAll) {
    return add_to(row + first, values);
  }
  const __m512 turned = _mm512_permutexvar_ps(reversed_lanes(), values);
  if (_mm512_cmpeq_epi32_mask(_mm512_add_epi32(at, lanes), start) == kAll) {
    return add_to(row + last, turned);
  }
  if (first <= last
          ? add_buckets(at, first, values, row)
          : add_buckets(_mm512_permutexvar_epi32(reversed_lanes(), at), last, turned, row)) {
    return;
  }
  alignas(64) float each[kLanes];
  _mm512_store_ps(each, values);
  for (int64_t l = 0; l < kLanes; ++l) row[index[l]] += each[l];
}

AVX512_TARGET void add_of_rows(const PositionTile& t, const float* of_rows, float* scores,
                               int64_t ld) {
  for (int64_t i = 0; i < kLanes; ++i) {
    add_to(scores + i * ld, gathered(t.index - i, of_rows + i * t.stride, t.stride));
  }
}

// The rows of a column meet it in rows of the table from index[j - 15] up to index[j], so from the
// last row to the first.
AVX512_TARGET void add_of_columns(const PositionTile& t, const float* of_columns, float* scores,
                                  int64_t ld) {
  Wide<float> rows[kLanes];
#pragma GCC unroll 16
  for (int64_t j = 0; j < kLanes; ++j) {
    rows[j] = gathered(t.index + (j - (kLanes - 1)), of_columns + j * t.stride, t.stride);
  }
  transpose_rows(rows);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) add_to(scores + (kLanes - 1 - i) * ld, rows[i]);
}

AVX512_TARGET void sum_of_rows(const PositionTile& t, const float* ds, int64_t ld, float* of_rows) {
  for (int64_t i = 0; i < kLanes; ++i) {
    scatter(t.index - i, _mm512_loadu_ps(ds + i * ld), of_rows + i * t.stride);
  }
}

AVX512_TARGET void sum_of_columns(const PositionTile& t, const float* ds, int64_t ld,
                                  float* of_columns) {
  Wide<float> rows[kLanes];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) rows[i] = _mm512_loadu_ps(ds + (kLanes - 1 - i) * ld);
  transpose_rows(rows);
#pragma GCC unroll 16
  for (int64_t j = 0; j < kLanes; ++j) {
    scatter(t.index + (j - (kLanes - 1)), rows[j], of_columns + j * t.stride);
  }
}

}  // namespace

constinit const PositionCore<float> avx512_positions = {add_of_rows, add_of_columns, sum_of_rows,
                                                        sum_of_columns};

}  // namespace balora::attention::x86
