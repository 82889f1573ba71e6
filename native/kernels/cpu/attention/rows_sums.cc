// Sums over tiles, and rows in and out of them (rows_bf16.h).
#include "kernels/cpu/attention/bf16_rows.h"
#include "kernels/cpu/attention/rows_block.h"

#ifdef BALORA_TILES
namespace balora::attention::rows {
namespace {

// The columns of a panel, as vectors: of the last one half as many where D is no multiple of 64.
BALORA_INLINE int64_t panel_width(int64_t d, int64_t column) {
  return std::min(kTile, d - column);
}

// Whether sums begin with what is there, and whether they end as rows of bf16.
enum class Step { kFirst, kNext, kLast, kOnly };
constexpr bool begins(Step step) {
  return step == Step::kFirst || step == Step::kOnly;
}
constexpr bool ends(Step step) {
  return step == Step::kLast || step == Step::kOnly;
}

// Rows of bf16, from row i and a column on.
struct RowsOut {
  const RowResult& to;
  int64_t row, rows, column;

  BF16_TARGET BALORA_INLINE void store(int64_t r, int64_t c, __m512 low, __m512 high) const {
    const __m512 factor = all(to.factors[row + r]);
    _mm512_mask_storeu_epi16(to.out + (row + r) * to.stride + column + c,
                             first32(to.size - column - c),
                             rounded(_mm512_mul_ps(low, factor), _mm512_mul_ps(high, factor)));
  }
};

// Sums of four rows of a panel.
template <int kColumns, Step kStep>
BF16_TARGET BALORA_INLINE void add_rows(const __m512 (&sums)[kBlock][kColumns], float* to,
                                        const RowsOut& out) {
#pragma GCC unroll 4
  for (int64_t r = 0; r < kBlock; ++r) {
    if (ends(kStep) && out.row + r >= out.rows) break;
    __m512 values[kColumns];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kColumns; ++v) {
      float* place = to + (r * kColumns + v) * kLanes;
      const __m512 before = begins(kStep) ? _mm512_setzero_ps() : _mm512_load_ps(place);
      values[v] = _mm512_add_ps(sums[r][v], before);
      if (!ends(kStep)) _mm512_store_ps(place, values[v]);
    }
    if (ends(kStep)) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kColumns; v += 2) {
        out.store(r, v * kLanes, values[v], values[v + 1]);
      }
    }
  }
}

// Four rows of a whole tile's sums.
template <Left kLeft, int kColumns, typename Meanwhile>
BF16_TARGET BALORA_INLINE void whole_products(const bf16* a, const bf16* b,
                                              __m512 (&sums)[kBlock][kColumns],
                                              const Meanwhile& meanwhile) {
  constexpr int64_t kWidth = kColumns * kLanes;
  tile_block::clear(sums);
#pragma GCC unroll 1
  for (int64_t k = 0; k < kTile; k += 16) {
    tile_block::add_pairs<kLeft, 8>(a, kTile, b + k * kWidth, kWidth, sums, meanwhile);
    a += kLeft == Left::kRows ? 16 : 16 * kTile;
  }
}

// An odd number of rows or keys has one more, whose probabilities are 0.
constexpr int64_t even(int64_t count) {
  return (count + 1) & ~int64_t{1};
}

// Two rows of a B operand, from 32 columns of an even and an odd row.
BF16_TARGET BALORA_INLINE void store_pair(const lanes::Interleaved& order, __m512i even,
                                          __m512i odd, bf16* to) {
  const lanes::Interleaved pairs = lanes::interleave(order, even, odd);
  _mm512_store_si512(to, pairs.low);
  _mm512_store_si512(to + 32, pairs.high);
}

// How a panel is summed: a part of a tile,
struct Part {};
// or all of it, while something else runs: start(block, column) before the products of each block,
// and between them run(step), eight times for every 16 of k. Nothing else:
struct Alone {
  BALORA_INLINE void start(int64_t, int64_t) {}
  BALORA_INLINE void run(int64_t) {}
};
template <int kCursors>
struct Asking {
  Cursor* cursors;
  BALORA_INLINE void start(int64_t, int64_t) {}
  BALORA_INLINE void run(int64_t step) {
    if (step == 1) cursors[0].ask();
    if (kCursors == 2 && step == 5) cursors[1].ask();
  }
};

// Packs panels of 64 columns. A sixteenth of one is beside each block of 16: eight rows and 32
// columns, two rows for every 16 of k.
template <bool kDots>
struct PackingBeside {
  ComingRows coming;
  // Where start() and run() have come to.
  const bf16 *row = nullptr, *other = nullptr;
  bf16* packed = nullptr;
  float* dots = nullptr;
  __mmask16 begun = 0;  // which lanes of the dots there are so far: all, at the first columns none

  BF16_TARGET BALORA_INLINE void start(int64_t block, int64_t column) {
    const int64_t i = block % 8 * 8, c = block / 8 * 32;
    row = coming.rows.data + i * coming.rows.stride + column + c;
    packed = coming.packed + (column + i) * kTile + 2 * c;
    if (!kDots) return;
    other = coming.others.data + i * coming.others.stride + column + c;
    dots = coming.lanes + i * kLanes;
    begun = column + c == 0 ? __mmask16{0} : __mmask16{0xffff};
  }
  BF16_TARGET BALORA_INLINE void run(int64_t step) {
    if (step == 1) {
      store_pair(lanes::interleaving(), _mm512_loadu_si512(row),
                 _mm512_loadu_si512(row + coming.rows.stride), packed);
      packed += 2 * kTile;
    }
    if (kDots && step == 3) add_dot();
    if (kDots && step == 5) add_dot();
    if (!kDots && step == 5) row += 2 * coming.rows.stride;
  }

 private:
  BF16_TARGET BALORA_INLINE void add_dot() {
    const auto x = (__m512bh)_mm512_loadu_si512(row), y = (__m512bh)_mm512_loadu_si512(other);
    _mm512_store_ps(dots, _mm512_dpbf16_ps(_mm512_maskz_load_ps(begun, dots), x, y));
    row += coming.rows.stride, other += coming.others.stride, dots += kLanes;
  }
};

template <typename Beside>
constexpr bool kPacks = false;
template <bool kDots>
constexpr bool kPacks<PackingBeside<kDots>> = true;

template <int kColumns, Step kStep, typename Beside>
BF16_TARGET void keys_panel(const bf16* p, const bf16* b, const Band& band, int64_t rows, int64_t n,
                            float* to, const RowResult& result, int64_t column, Beside beside) {
  constexpr int64_t kWidth = kColumns * kLanes;
#pragma GCC unroll 1
  for (int64_t i = 0; i < rows; i += kBlock) {
    __m512 sums[kBlock][kColumns];
    if constexpr (std::is_same_v<Beside, Part>) {
      const TileRange keys = band.keys(i, std::min(i + kBlock, rows), n, 2);
      tile_block::pair_products(keys.count(), p + i * kTile + keys.first, kTile,
                                b + keys.first * kWidth, kWidth, sums);
    } else {
      whole_products<Left::kRows>(p + i * kTile, b, sums,
                                  [&](int64_t step) MEANWHILE { beside.run(step); });
    }
    add_rows<kColumns, kStep>(sums, to + i * kWidth, {result, i, rows, column});
  }
}

template <int kColumns, Step kStep, typename Beside>
BF16_TARGET void queries_panel(const bf16* p, const bf16* b, const Band& band, int64_t rows,
                               int64_t n, float* to, int64_t column, Beside beside) {
  constexpr int64_t kWidth = kColumns * kLanes;
#pragma GCC unroll 1
  for (int64_t j = 0; j < n; j += kBlock) {
    __m512 sums[kBlock][kColumns];
    if constexpr (std::is_same_v<Beside, Part>) {
      // Pairs of rows, of which p and ds are known where one of the two sees a key.
      const TileRange seen = band.queries(j, std::min(j + kBlock, n), rows, 1);
      const int64_t first = seen.first & ~int64_t{1};
      const TileRange queries{first, seen.count() == 0 ? first : even(seen.last)};
      tile_block::pair_products<Left::kColumns>(queries.count(), p + queries.first * kTile + 2 * j,
                                                kTile, b + queries.first * kWidth, kWidth, sums);
    } else {
      beside.start(j / kBlock, column);
      whole_products<Left::kColumns>(p + 2 * j, b, sums,
                                     [&](int64_t step) MEANWHILE { beside.run(step); });
    }
    add_rows<kColumns, kStep>(sums, to + j * kWidth, {RowResult{}, 0, 0, 0});
  }
}

// 32 values of row i from column c on, zeros beyond the source where it has not all.
template <bool kHasAll>
BF16_TARGET BALORA_INLINE __m512i load_row(const Source<bf16>& s, int64_t i, int64_t c) {
  if (kHasAll) return _mm512_loadu_si512(s.data + i * s.stride + c);
  return lanes::load_row(s, i, c);
}

// Calls body.template operator()<kColumns>(column) for the panels of d columns.
template <typename Body>
void for_panels(int64_t d, const Body& body) {
  for (int64_t column = 0; column < d; column += kTile) {
    panel_width(d, column) == kTile ? body.template operator()<4>(column)
                                    : body.template operator()<2>(column);
  }
}

}  // namespace

void sum_over_keys(const bf16* p, const bf16* b, int64_t d, const Band& band, int64_t rows,
                   int64_t n, float* sums, bool is_first, const RowResult& result, Ahead* ahead) {
  const auto panels = [&](auto beside) {
    for_panels(d, [&]<int kColumns>(int64_t column) {
      const int64_t at = column * kTile;
      const auto run = [&]<Step kStep>() {
        keys_panel<kColumns, kStep>(p, b + at, band, rows, even(n), sums + at, result, column,
                                    beside);
      };
      if (result.out) {
        is_first ? run.template operator()<Step::kOnly>() : run.template operator()<Step::kLast>();
      } else {
        is_first ? run.template operator()<Step::kFirst>() : run.template operator()<Step::kNext>();
      }
    });
  };
  if (!is_whole(band, rows, n)) return panels(Part{});
  ahead ? panels(Asking<2>{ahead->sums}) : panels(Alone{});
}

void sum_over_queries(const bf16* p, const bf16* b, int64_t d, const Band& band, int64_t rows,
                      int64_t n, float* sums, bool is_first, Cursor* ahead,
                      const ComingRows* coming) {
  const auto panels = [&]<typename Beside>(Beside beside) {
    for_panels(d, [&]<int kColumns>(int64_t column) {
      const int64_t at = column * kTile;
      const auto run = [&]<Step kStep>() {
        if constexpr (kColumns == 4 || !kPacks<Beside>) {
          queries_panel<kColumns, kStep>(p, b + at, band, rows, n, sums + at, column, beside);
        }
      };
      is_first ? run.template operator()<Step::kFirst>() : run.template operator()<Step::kNext>();
    });
  };
  if (!is_whole(band, rows, n)) return panels(Part{});
  if (ahead) return panels(Asking<1>{ahead});
  if (!coming) return panels(Alone{});
  coming->others.data ? panels(PackingBeside<true>{*coming})
                      : panels(PackingBeside<false>{*coming});
}

namespace {

template <bool kHasAll>
BF16_TARGET void pack_panels(const Source<bf16>& rows, int64_t d, bf16* out) {
  const lanes::Interleaved order = lanes::interleaving();
  for (int64_t column = 0; column < d; column += kTile) {
    const int64_t width = panel_width(d, column);
    for (int64_t i = 0; i < kTile; i += 2) {
      for (int64_t c = 0; c < width; c += 32) {
        store_pair(order, load_row<kHasAll>(rows, i, column + c),
                   load_row<kHasAll>(rows, i + 1, column + c),
                   out + column * kTile + i * width + 2 * c);
      }
    }
  }
}

template <bool kHasAll>
BF16_TARGET void dots_of(const Source<bf16>& x, const Source<bf16>& y, float* dots) {
  for (int64_t i = 0; i < kTile; i += kLanes) {
    __m512 sums[kLanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kLanes; ++r) {
      sums[r] = _mm512_setzero_ps();
      for (int64_t c = 0; c < x.size; c += 32) {
        sums[r] = _mm512_dpbf16_ps(sums[r], (__m512bh)load_row<kHasAll>(x, i + r, c),
                                   (__m512bh)load_row<kHasAll>(y, i + r, c));
      }
    }
    _mm512_store_ps(dots + i, across_lanes(sums, Plus{}));
  }
}

}  // namespace

void pack_rows(const Source<bf16>& rows, int64_t d, bf16* out) {
  const bool has_all = rows.rows == kTile && rows.size == d;
  has_all ? pack_panels<true>(rows, d, out) : pack_panels<false>(rows, d, out);
}

void row_dots(const Source<bf16>& x, const Source<bf16>& y, float* dots) {
  const bool has_all = x.rows == kTile && x.size % 32 == 0;
  has_all ? dots_of<true>(x, y, dots) : dots_of<false>(x, y, dots);
}

BF16_TARGET void write_rows(const float* sums, int64_t d, int64_t rows, const RowResult& result) {
  for (int64_t column = 0; column < d; column += kTile) {
    const int64_t width = panel_width(d, column);
    const RowsOut out{result, 0, rows, column};
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = sums + column * kTile + i * width;
      for (int64_t c = 0; c < width; c += 32) {
        out.store(i, c, _mm512_load_ps(from + c), _mm512_load_ps(from + c + kLanes));
      }
    }
  }
}

}  // namespace balora::attention::rows
#endif
