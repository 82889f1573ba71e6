// Groups of 16 rows of a tile that is masked in part.
#pragma once
#include "kernels/cpu/attention/rows_block.h"

#ifdef BALORA_TILES
namespace balora::attention::rows {

// The keys of a tile that any of a group's 16 rows sees, as vectors of lanes.
struct Lanes {
  int64_t first, count;
};
BALORA_INLINE Lanes lanes_of(const Band& band, int64_t row, int64_t rows, int64_t n) {
  const TileRange keys = band.keys(row, row + rows, n, 1);
  const int64_t first = keys.first / kLanes;
  return {first, keys.count() == 0 ? 0 : (keys.last + kLanes - 1) / kLanes - first};
}

BF16_TARGET BALORA_INLINE __m512i lane_numbers() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// The keys [first, last) of a tile that a row sees, in every lane.
struct SeenKeys {
  __m512i first, last;

  // Which of 16 keys from `key` on are among them.
  BF16_TARGET BALORA_INLINE __mmask16 from(int64_t key) const {
    const __m512i keys =
        _mm512_add_epi32(lane_numbers(), _mm512_set1_epi32(static_cast<int32_t>(key)));
    return _mm512_mask_cmplt_epi32_mask(_mm512_cmpge_epi32_mask(keys, first), keys, last);
  }
};
BF16_TARGET BALORA_INLINE SeenKeys seen_keys(const Band& band, int64_t row, int64_t rows,
                                             int64_t n) {
  const int64_t last = row < rows ? std::min(n, row - band.low + 1) : 0;
  const int64_t first = std::max<int64_t>(0, row - band.high + 1);
  return {_mm512_set1_epi32(static_cast<int32_t>(std::min(first, n))),
          _mm512_set1_epi32(static_cast<int32_t>(std::max<int64_t>(last, 0)))};
}

// A group whose rows see all keys of its vectors, from the first of the tile on, but of the last
// vector one key more each: those of a causal mask's tile by the queries themselves. Other groups
// are met at the edges of windows and segments.
BALORA_INLINE bool is_stair(const Band& band, const Lanes& lanes, int64_t row, int64_t rows,
                            int64_t n) {
  return lanes.first == 0 && lanes.count > 0 && row + kLanes <= rows && n >= lanes.count * kLanes &&
         row + kLanes <= band.high && row - band.low == (lanes.count - 1) * kLanes;
}
// Which of a stair's last vector a row sees.
template <int64_t kColumns>
BF16_TARGET BALORA_INLINE __mmask16 stair_mask(const Band& band, int64_t row) {
  const int64_t count = row - band.low + 1 - (kColumns - 1) * kLanes;
  return _mm512_cmplt_epi32_mask(lane_numbers(), _mm512_set1_epi32(static_cast<int32_t>(count)));
}

// A stair whose rows run between the products of the next group has run(state, r, stage), for the
// rows r, kStep apart, in kStages stages each. None:
struct NoRows {
  static constexpr int64_t kStep = 16, kStages = 0;
};

// Sums of a block of a group, the last vector of which may be a half: the first eight rows of a
// stair see no more of it.
template <int kRows, int kColumns, bool kHalf>
struct GroupSums {
  static constexpr int kWhole = kColumns - kHalf;
  __m512 whole[kRows][kColumns];
  __m256 half[kRows];

  BF16_TARGET BALORA_INLINE void clear() {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kWhole; ++v) whole[r][v] = _mm512_setzero_ps();
      if (kHalf) half[r] = _mm256_setzero_ps();
    }
  }
  // A pair of k.
  BF16_TARGET BALORA_INLINE void add(const bf16* left, int64_t stride, const bf16* b) {
    __m512bh right[kColumns];
#pragma GCC unroll 4
    for (int v = 0; v < kWhole; ++v) right[v] = (__m512bh)_mm512_load_si512(b + 32 * v);
    const auto right_half =
        (__m256bh)_mm256_load_si256(reinterpret_cast<const __m256i*>(b + 32 * (kColumns - 1)));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh value = broadcast_pair(left + r * stride);
#pragma GCC unroll 4
      for (int v = 0; v < kWhole; ++v) {
        whole[r][v] = _mm512_dpbf16_ps(whole[r][v], value, right[v]);
      }
      if (kHalf) {
        const auto low = (__m256bh)_mm512_castsi512_si256((__m512i)value);
        half[r] = _mm256_dpbf16_ps(half[r], low, right_half);
      }
    }
  }
  BF16_TARGET BALORA_INLINE void keep(float* to) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r, to += kTile) {
#pragma GCC unroll 4
      for (int v = 0; v < kWhole; ++v) {
        _mm512_store_ps(to + v * kLanes, _mm512_add_ps(whole[r][v], _mm512_setzero_ps()));
      }
      if (kHalf) {
        _mm256_store_ps(to + kWhole * kLanes, _mm256_add_ps(half[r], _mm256_setzero_ps()));
      }
    }
  }
};

// A count that the compiler does not know. Of a loop of few rounds GCC makes copies of the body,
// however long that is and whatever `unroll` says: 30 KiB of code leave the nearest cache again.
BALORA_INLINE int64_t rounds(int64_t count) {
  asm("" : "+r"(count));
  return count;
}

// The scores (16,kTile) of the group of 16 rows from `row` on with kColumns vectors of keys.
template <int kColumns, bool kStair, typename Before>
BF16_TARGET BALORA_INLINE void group_products(Operand a, int64_t row, const bf16* b, int64_t size,
                                              float* scores, Before before) {
  constexpr int64_t kRows = kColumns <= 2 ? 8 : 4;
  constexpr int64_t kSlots = std::max<int64_t>(1, kRows / Before::kStep);
  constexpr int64_t kSteps = 32 / kSlots;  // of a slot, where D is 64
  const auto rows = [&]<bool kHalf>(int64_t r) MEANWHILE {
    const bf16* left = a.data + (row + r) * a.stride;
    GroupSums<kRows, kColumns, kHalf> sums;
    sums.clear();
    if constexpr (Before::kStages != 0) {
#pragma GCC unroll 1
      for (int64_t slot = 0, slots = rounds(kSlots); slot < slots; ++slot) {
        typename Before::State state;
        const int64_t k = slot * 2 * kSteps;
#pragma GCC unroll 16
        for (int64_t step = 0; step < kSteps; ++step) {
          sums.add(left + k + 2 * step, a.stride, b + (k + 2 * step) * kTile);
          const int64_t last = (step + 1) * Before::kStages / kSteps;
#pragma GCC unroll 16
          for (int64_t stage = step * Before::kStages / kSteps; stage < last; ++stage) {
            before.run(state, r + slot * Before::kStep, stage);
          }
        }
      }
    } else {
#pragma GCC unroll 1
      for (int64_t k = 0; k < size; k += 8) {
#pragma GCC unroll 4
        for (int64_t step = 0; step < 8; step += 2) {
          sums.add(left + k + step, a.stride, b + (k + step) * kTile);
        }
      }
    }
    sums.keep(scores + r * kTile);
  };
  // The first half of a stair sees half of the last vector.
  constexpr int64_t kHalves = kStair ? kLanes / 2 : 0;
  if constexpr (kStair) {
#pragma GCC unroll 1
    for (int64_t r = 0, last = rounds(kHalves); r < last; r += kRows) {
      rows.template operator()<true>(r);
    }
  }
#pragma GCC unroll 1
  for (int64_t r = kHalves, last = rounds(kLanes); r < last; r += kRows) {
    rows.template operator()<false>(r);
  }
}

// Calls body.template operator()<kColumns>() for a group's number of vectors.
template <typename Body>
void for_columns(int64_t count, const Body& body) {
  if (count == 1) body.template operator()<1>();
  if (count == 2) body.template operator()<2>();
  if (count == 3) body.template operator()<3>();
  if (count == 4) body.template operator()<4>();
}

// The rows of a stair beside which nothing else runs, two at a time.
template <typename Stair>
BF16_TARGET void finish_stair(const Stair& waiting) {
  const Stair stair = waiting;  // a copy: what is stored could be its fields
#pragma GCC unroll 1
  for (int64_t r = 0; r < kLanes; r += 2 * Stair::kStep) {
    typename Stair::State states[2];
#pragma GCC unroll 16
    for (int64_t stage = 0; stage < Stair::kStages; ++stage) {
      stair.run(states[0], r, stage);
      stair.run(states[1], r + Stair::kStep, stage);
    }
  }
}

// Groups of 16 rows, the last first: of a causal mask, the first has the fewest keys, so that
// little is left to run after the products. groups has
//   multiply<kColumns, kStair>(row, first, waiting)  its products, while a stair's rows run
//   stair<kColumns>(row)                             a stair that may wait for those of the next
//   finish<kColumns>(row, first)                     any group's rows
//   stairs, can_wait      whether there may be stairs, and whether the last group may wait
// beside: whether the size allows that the rows of a stair run between products.
template <typename Groups>
BF16_TARGET void run_groups(Groups& groups, const Band& band, int64_t rows, int64_t n,
                            bool beside) {
  int64_t columns = 0;  // of the stair that waits
  for (int64_t row = (rows - 1) / kLanes * kLanes; row >= 0; row -= kLanes) {
    const Lanes lanes = lanes_of(band, row, std::min(kLanes, rows - row), n);
    const bool stair = groups.stairs && is_stair(band, lanes, row, rows, n);
    const auto products = [&](const auto& waiting) {
      for_columns(lanes.count, [&]<int kColumns>() {
        if (stair) {
          groups.template multiply<kColumns, true>(row, lanes.first, waiting);
        } else {
          groups.template multiply<kColumns, false>(row, lanes.first, waiting);
        }
      });
    };
    if (columns == 0) {
      products(NoRows{});
    } else {
      for_columns(columns, [&]<int kColumns>() {
        const auto waiting = groups.template stair<kColumns>(row + kLanes);
        if (beside && lanes.count != 0) return products(waiting);
        finish_stair(waiting);
        products(NoRows{});
      });
    }
    columns = stair && groups.can_wait ? lanes.count : 0;
    if (columns == 0) {
      for_columns(lanes.count,
                  [&]<int kColumns>() { groups.template finish<kColumns>(row, lanes.first); });
    }
  }
  for_columns(columns, [&]<int kColumns>() { finish_stair(groups.template stair<kColumns>(0)); });
}

}  // namespace balora::attention::rows
#endif
