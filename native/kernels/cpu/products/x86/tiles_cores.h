// The two ways of multiplying one block of tiles (tiles_walk.cc): on AMX, and on AVX512-BF16.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <utility>

#include "kernels/cpu/products/tiles_job.h"
#include "kernels/cpu/products/x86/amx_blocks.h"
#include "kernels/cpu/products/x86/block_rows.h"
#include "kernels/cpu/runtime/inline.h"

namespace balora::tiles {

constexpr int64_t kRowsAStep = 2;  // of the block before, written in one step

// A finished block whose rows go to C between the steps of the next one: stores that miss the cache
// then wait side by side with products, and not in a burst that stops them.
struct PendingRows {
  const float* block = nullptr;
  bf16* to = nullptr;
  int64_t ldc = 0;
  int64_t next = 0, rows = 0;

  BF16_TARGET BALORA_INLINE void write(int64_t count) {
    for (; count > 0 && next < rows; --count, ++next) {
      const float* from = block + next * kTileN;
      const __m512 low = _mm512_load_ps(from), high = _mm512_load_ps(from + 16);
      _mm512_storeu_si512(to + next * ldc,
                          reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }
};

// Rows that are asked for in the second-level cache, line by line between the steps of a block: the
// first-level cache has no room beside what is being multiplied, and many lines at once would stop
// the products.
class LinesAhead {
 public:
  LinesAhead() = default;
  // `count` rows of `bytes`, `stride` bytes apart.
  LinesAhead(const void* rows, int64_t count, int64_t bytes, int64_t stride)
      : row_(static_cast<const char*>(rows)), rows_(count), bytes_(bytes), stride_(stride) {}

  // Lines that are left.
  BALORA_INLINE int64_t lines() const { return rows_ * ((bytes_ + 63) / 64) - at_ / 64; }

  BALORA_INLINE void ask() {
    if (rows_ <= 0) return;
    __builtin_prefetch(row_ + at_, 0, 2);
    at_ += 64;
    if (at_ < bytes_) return;
    at_ = 0, row_ += stride_;
    --rows_;
  }

 private:
  const char* row_ = nullptr;
  int64_t rows_ = 0, bytes_ = 0, stride_ = 0, at_ = 0;
};

// The next step of B, half of it at a time, on its way from L2. Past the end of B it does nothing.
BF16_TARGET BALORA_INLINE void prefetch_half(const bf16* b) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i)
    _mm_prefetch(reinterpret_cast<const char*>(b) + 64 * i, _MM_HINT_T0);
}

// Where a block of sums goes: 32 x 32, rows ld apart, in f32 or, from a core that rounds, in bf16.
struct BlockPlace {
  float* data = nullptr;
  bf16* rounded = nullptr;  // null: data
  int64_t ld = 0;
};

// A block that sums begin with: 32 x 32 of f32, rows ld apart. Null: zeros.
struct Beginning {
  const float* data = nullptr;
  int64_t ld = 0;
};

// How many panels of B the rows of a block meet before others take their place. Rows that meet many
// stay in the first-level cache, and B streams past it; few are not worth it.
enum class Meeting { kFew, kMany };
constexpr int64_t kManyPanels = 7;

constexpr int64_t kAnySteps = int64_t{1} << 40;  // of one pass: more than any sum has

struct AmxCore {
  static constexpr bool kRounds = false;
  // Bytes of B in L2 over all rows, of panels whose rows meet many of them (TilesCore has those of
  // larger ones).
  static constexpr int64_t kCachedBytes = int64_t{3} << 18;
  // In one pass over a chunk of B: rows of A of so many steps stay in L1 beside what streams by.
  static constexpr int64_t kPassSteps = 20;

  AMX_TARGET static void open() { configure_tiles(); }
  AMX_TARGET static void close() { _tile_release(); }

  // The block of `rows` rows from `row` on, in `panel`, plus what it begins with; what it leaves in
  // further rows means nothing.
  AMX_TARGET static void multiply(std::span<const Source> terms, int64_t row, int64_t rows,
                                  int64_t panel, PendingRows& pending, BlockPlace c,
                                  Beginning beginning = {}, Meeting meeting = Meeting::kFew,
                                  LinesAhead ahead = {}) {
    amx::begin_block(beginning.data, beginning.ld);
    if (meeting == Meeting::kMany) {
      add<Meeting::kMany>(terms, row, rows, panel, pending, ahead);
    } else {
      add<Meeting::kFew>(terms, row, rows, panel, pending, ahead);
    }
    amx::end_block(c.data, c.ld);
  }

  // 32 columns of B that lie one after the other, `ld` apart, are the left operand, and a tile of
  // rows of A, packed as a B operand, is the right one: nothing of B is packed, and a weight is read
  // once at the speed of memory. The transposed block (32,16) at c is written, or added to; each of
  // its sums is the one that multiply() makes, bit for bit.
  //
  // 16 columns at a time, and nothing is asked for ahead of time: the fewer streams the better the
  // processor foresees them, and prefetches only take its line buffers. Two threads of a Sapphire
  // Rapids read 30 to 32 GB/s so, with 32 columns at a time 29.5, with prefetches 26, and in one
  // stream of plain loads 35.
  AMX_TARGET static void multiply_columns(const bf16* columns, int64_t ld, const bf16* rows,
                                          int64_t steps, float* c, bool accumulate) {
    const int64_t stride = ld * static_cast<int64_t>(sizeof(bf16));
    for (int64_t half = 0; half < 2; ++half) {
      const bf16 *column = columns + half * 16 * ld, *row = rows;
      float* const to = c + half * 16 * kInPlaceRows;
      _tile_zero(0);
      if (accumulate) _tile_loadd(0, to, 64);
      for (int64_t step = 0; step < steps; ++step) {
        _tile_loadd(4, column, stride);
        _tile_loadd(6, row, 64);
        _tile_dpbf16ps(0, 4, 6);
        column += kTileK, row += kStepElements;
      }
      _tile_stored(0, to, 64);
    }
  }

 private:
  template <Meeting kMeeting>
  AMX_TARGET BALORA_INLINE static void add(std::span<const Source> terms, int64_t row, int64_t rows,
                                           int64_t panel, PendingRows& pending, LinesAhead& ahead) {
    const bool tail = rows < kPanelRows;
    // A copy, for registers: in memory its words would wait for the stores before them.
    PendingRows left = pending;
    int64_t steps = 0;
    for (const Source& term : terms) steps += term.steps;
    const int64_t asks = (ahead.lines() + steps - 1) / std::max<int64_t>(steps, 1);
    for (const Source& term : terms) {
      const int64_t lda = tail ? term.tail_ld : term.lda;
      const bf16* a0 = tail ? term.tail : term.a + row * lda;
      const bf16* a1 = a0 + 16 * lda;
      const bf16* b = term.panel(panel);
      const int64_t stride = lda * static_cast<int64_t>(sizeof(bf16));
      for (int64_t step = 0; step < term.steps; ++step) {
        const bf16* const second = b + kStepElements / 2;
        _tile_loadd(4, a0, stride);
        if constexpr (kMeeting == Meeting::kMany) {
          _tile_stream_loadd(6, b, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_stream_loadd(7, second, 64);
        } else {
          prefetch_half(b + kStepElements);
          _tile_loadd(6, b, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, second, 64);
          prefetch_half(second + kStepElements);
        }
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        left.write(kRowsAStep);
        for (int64_t i = 0; i < asks; ++i) ahead.ask();
        a0 += kTileK, a1 += kTileK, b += kStepElements;
      }
    }
    pending.next = left.next;
  }
};

struct Avx512Core {
  static constexpr bool kRounds = true;
  // About an L2: what is packed then stays where it was written. Larger parts read A fewer times,
  // and find their memory out of every cache when they pack again.
  static constexpr int64_t kCachedBytes = int64_t{1} << 20;
  static constexpr int64_t kPassSteps = kAnySteps;

  static void open() {}
  static void close() {}

  BF16_TARGET static void multiply(std::span<const Source> terms, int64_t row, int64_t rows,
                                   int64_t panel, PendingRows&, BlockPlace c,
                                   Beginning beginning = {}, Meeting = Meeting::kFew,
                                   LinesAhead ahead = {}) {
    const bool twelve = std::all_of(terms.begin(), terms.end(), [](const Source& term) {
      return twelve_rows_fit(term.lda * static_cast<int64_t>(sizeof(bf16)));
    });
    const bool tail = rows < kPanelRows;
    for (int64_t r = 0; r < rows;) {
      const Beginning from = {beginning.data ? beginning.data + r * beginning.ld : nullptr,
                              beginning.ld};
      const int64_t tail_row = tail ? r : -1;
      const BlockPlace at = {c.data ? c.data + r * c.ld : nullptr,
                             c.rounded ? c.rounded + r * c.ld : nullptr, c.ld};
      if (twelve && rows - r > 8) {
        multiply_rows<12>(terms, row + r, tail_row, panel, at, from, ahead);
        r += 12;
      } else if (rows - r > 4) {
        multiply_rows<8>(terms, row + r, tail_row, panel, at, from, ahead);
        r += 8;
      } else if (rows - r > 1) {
        multiply_rows<4>(terms, row + r, tail_row, panel, at, from, ahead);
        r += 4;
      } else {
        multiply_rows<1>(terms, row + r, tail_row, panel, at, from, ahead);
        r += 1;
      }
    }
  }

  // Up to kInPlaceRows rows of A by 32 columns of B that lie one after the other, `ld` apart. They
  // are transposed in registers: where a panel is packed first, nothing is fetched while it is
  // multiplied. The block at c, kTileN a row, is written, or added to; each of its sums is the one
  // that multiply() makes, bit for bit.
  //
  // Two threads of a Zen 4 read a weight at 30 GB/s for up to eight rows (15 to 24 where they pack
  // it, 34 in a plain sum), and at 18 for sixteen (12).
  BF16_TARGET static void multiply_columns(const bf16* columns, int64_t ld, const Source& rows,
                                           int64_t count, float* c, bool accumulate) {
    static constexpr auto kByRows = []<size_t... kRows>(std::index_sequence<kRows...>) {
      return std::array{&multiply_columns_by<kRows + 1>...};
    }(std::make_index_sequence<kInPlaceRows>());
    const auto multiply = kByRows[static_cast<size_t>(count - 1)];
    for (int64_t half = 0; half < kTileN; half += 16) {
      multiply(columns + half * ld, ld, rows, c + half, accumulate);
    }
  }

 private:
  // kRows x 16 sums. A step of the columns becomes sixteen pairs of k while the step before is
  // multiplied: shuffles and products wait for different parts of the processor, but only few
  // instructions for one another.
  template <size_t kRows>
  BF16_TARGET static void multiply_columns_by(const bf16* columns, int64_t ld, const Source& rows,
                                              float* c, bool accumulate) {
    __m512 sums[kRows];
#pragma GCC unroll 16
    for (size_t r = 0; r < kRows; ++r) {
      sums[r] = accumulate ? _mm512_loadu_ps(c + r * kTileN) : _mm512_setzero_ps();
    }
    const int64_t lda = rows.lda, lda3 = 3 * lda;
    // A row in four has a pointer, as in multiply_rows.
    const bf16 *a0 = rows.a, *a4 = a0 + 4 * lda, *a8 = a4 + 4 * lda, *a12 = a8 + 4 * lda;
    asm("" : "+r"(a4), "+r"(a8), "+r"(a12));
    const auto multiply = [&](__m512i pair) BF16_TARGET {
#pragma GCC unroll 16
      for (size_t r = 0; r < kRows; ++r) {
        const bf16* at = r < 4 ? a0 : r < 8 ? a4 : r < 12 ? a8 : a12;
        at += r % 4 == 3 ? lda3 : static_cast<int64_t>(r % 4) * lda;
        sums[r] = _mm512_dpbf16_ps(sums[r], broadcast_pair(at), reinterpret_cast<__m512bh>(pair));
      }
      a0 += 2, a4 += 2, a8 += 2, a12 += 2;
    };
    __m512i quarters[16], pairs[2][16];
    for (int i = 0; i < 4; ++i) transpose_quarter(columns + 4 * i * ld, ld, quarters + i);
    for (int i = 0; i < 4; ++i) join_quarters(quarters + 4 * i, pairs[0] + i);
    for (int64_t step = 0; step < rows.steps; ++step) {
      const __m512i* const now = pairs[step % 2];
      __m512i* const next = pairs[(step + 1) % 2];
      // After the last step the columns' last step again, which nobody reads.
      if (step + 1 < rows.steps) columns += kTileK;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        transpose_quarter(columns + 4 * i * ld, ld, quarters + i);
        multiply(now[2 * i]), multiply(now[2 * i + 1]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        join_quarters(quarters + 4 * i, next + i);
        multiply(now[2 * i + 8]), multiply(now[2 * i + 9]);
      }
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < kRows; ++r) _mm512_storeu_ps(c + r * kTileN, sums[r]);
  }

  // Transposes the four words of each lane of four columns: word i of every lane goes to to[4 i].
  // The sixteenth columns from here are asked for, into L2, which waits for more lines at a time
  // than L1 does.
  BF16_TARGET BALORA_INLINE static void transpose_quarter(const bf16* columns, int64_t ld,
                                                          __m512i* to) {
    __m512i column[4];
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      __builtin_prefetch(columns + (j + 16) * ld, 0, 2);
      column[j] = _mm512_loadu_si512(columns + j * ld);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(column[0], column[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(column[2], column[3]);
    const __m512i high01 = _mm512_unpackhi_epi32(column[0], column[1]);
    const __m512i high23 = _mm512_unpackhi_epi32(column[2], column[3]);
    to[0] = _mm512_unpacklo_epi64(low01, low23);
    to[4] = _mm512_unpackhi_epi64(low01, low23);
    to[8] = _mm512_unpacklo_epi64(high01, high23);
    to[12] = _mm512_unpackhi_epi64(high01, high23);
  }

  // Transposes the four lanes of four vectors: lane i of every vector goes to to[4 i].
  BF16_TARGET BALORA_INLINE static void join_quarters(const __m512i* from, __m512i* to) {
    const __m512i low01 = _mm512_shuffle_i32x4(from[0], from[1], 0x44);
    const __m512i low23 = _mm512_shuffle_i32x4(from[2], from[3], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(from[0], from[1], 0xee);
    const __m512i high23 = _mm512_shuffle_i32x4(from[2], from[3], 0xee);
    to[0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    to[4] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    to[8] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    to[12] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }

  // kRows x 2 vectors of sums. `tail_row` >= 0: rows of the tail from there on.
  template <int kRows>
  BF16_TARGET static void multiply_rows(std::span<const Source> terms, int64_t row,
                                        int64_t tail_row, int64_t panel, BlockPlace c,
                                        Beginning beginning, LinesAhead& ahead) {
    __m512 sums[kRows][2];
    if (beginning.data) {
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        sums[r][0] = _mm512_loadu_ps(beginning.data + r * beginning.ld);
        sums[r][1] = _mm512_loadu_ps(beginning.data + r * beginning.ld + 16);
      }
    } else {
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    }
    int asked = 0;  // rows of C, for which the stores would wait
    for (const Source& term : terms) {
      const bool tail = tail_row >= 0;
      const int64_t lda = tail ? term.tail_ld : term.lda, lda3 = 3 * lda;
      const bf16* b = term.panel(panel);
      // A row in four has a pointer and the others an offset from it: twelve offsets would not fit
      // the registers. The empty statement keeps the compiler from making one
      // pointer of them again.
      const bf16* a0 = tail ? term.tail + tail_row * lda : term.a + row * lda;
      const bf16 *a4 = a0 + 4 * lda, *a8 = a4 + 4 * lda;
      asm("" : "+r"(a4));
      if constexpr (kRows > 8) asm("" : "+r"(a8));
      for (int64_t left = term.pairs; left > 0; left -= kTileK / 2) {
        const bf16* const end = b + std::min(left, kTileK / 2) * kTileN;
        ahead.ask();
        if (c.rounded && asked < kRows) __builtin_prefetch(c.rounded + asked++ * c.ld, 0, 2);
        for (; b < end; b += kTileN) {
          const auto low = (__m512bh)_mm512_load_si512(b);
          const auto high = (__m512bh)_mm512_load_si512(b + kStepElements / 2);
          _mm_prefetch(reinterpret_cast<const char*>(b + kStepElements), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(b + kStepElements * 3 / 2), _MM_HINT_T0);
#pragma GCC unroll 12
          for (int r = 0; r < kRows; ++r) {
            const bf16* at = r < 4 ? a0 : r < 8 ? a4 : a8;
            const __m512bh value = broadcast_pair(at + (r % 4 == 3 ? lda3 : r % 4 * lda));
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], value, low);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], value, high);
          }
          a0 += 2, a4 += 2, a8 += 2;
        }
        b += kStepElements / 2;
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      if (c.rounded) {
        const __m512bh values = _mm512_cvtne2ps_pbh(sums[r][1], sums[r][0]);
        _mm512_storeu_si512(c.rounded + r * c.ld, reinterpret_cast<__m512i>(values));
      } else {
        _mm512_storeu_ps(c.data + r * c.ld, sums[r][0]);
        _mm512_storeu_ps(c.data + r * c.ld + 16, sums[r][1]);
      }
    }
  }
};

}  // namespace balora::tiles
