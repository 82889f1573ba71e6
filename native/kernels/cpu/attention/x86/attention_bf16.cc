// The core of attention in AVX512-BF16 instructions, for tiles of bf16 multiplied as such: vectors
// of rows are transposed, interleaved and rounded, where a compiler leaves loops over bf16 scalar.
#include <array>

#include "kernels/cpu/attention/attention_softmax.h"
#include "kernels/cpu/products/x86/tiles_words.h"
#include "kernels/cpu/runtime/x86/lanes.h"

namespace balora::attention::x86 {
namespace {

using namespace balora::lanes;

using Words = Wide<uint32_t>;

// 32 values of row i from column c on, zeros beyond the source.
BF16_TARGET BALORA_INLINE __m512i load_row(const Source<bf16>& s, int64_t i, int64_t c) {
  if (i >= s.rows) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi16(first32(s.size - c), s.data + i * s.stride + c);
}

// Where _mm512_permutex2var_epi16 takes words from: the even row, then (+32) the odd row.
struct Interleaved {
  __m512i low, high;
};
BF16_TARGET BALORA_INLINE Interleaved interleaving() {
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint16_t, 64> order{};
    for (uint16_t lane = 0; lane < 64; ++lane) {
      order[lane] = static_cast<uint16_t>(lane / 2 + (lane & 1) * 32);
    }
    return order;
  }();
  return {_mm512_load_si512(kOrder.data()), _mm512_load_si512(kOrder.data() + 32)};
}
BF16_TARGET BALORA_INLINE Interleaved interleave(const Interleaved& order, __m512i even,
                                                 __m512i odd) {
  return {_mm512_permutex2var_epi16(even, order.low, odd),
          _mm512_permutex2var_epi16(even, order.high, odd)};
}

// Rows of one head lie apart, which no hardware prefetcher follows across all of them.
BALORA_INLINE void prefetch_row(const Source<bf16>& s, int64_t i) {
  if (i >= s.rows) return;
  for (int64_t c = 0; c < s.size; c += 32) {
    _mm_prefetch(reinterpret_cast<const char*>(s.data + i * s.stride + c), _MM_HINT_T0);
  }
}
constexpr int64_t kAhead = 16;

// e^(score * scale - less) of 16 queries, of which a fused product and difference makes a power of
// 2. Maxima or log-sum-exps so `large` that this would cost 1e-4 of a probability want the scores
// scaled first. A query's are the same bits wherever they are computed, which is why that is a
// matter of its own and not of its neighbours.
struct Exponents {
  __m512 scale, less;
  __m512 base_2_scale, base_2_less;
  __mmask16 large;
};
BF16_TARGET BALORA_INLINE Exponents exponents_of(double scale, __m512 less) {
  const __m512 natural = all(static_cast<float>(scale));
  const __m512 log2e = all(vec::kLog2e);
  return {natural, less, _mm512_mul_ps(natural, log2e), _mm512_mul_ps(less, log2e),
          _mm512_cmp_ps_mask(_mm512_abs_ps(less), all(1024.0f), _CMP_NLE_UQ)};
}
template <bool kSomeLarge>
BF16_TARGET BALORA_INLINE __m512 probabilities(const Exponents& e, __m512 score) {
  const __m512 most = exp2_for_bf16(_mm512_fmsub_ps(score, e.base_2_scale, e.base_2_less));
  if constexpr (!kSomeLarge) return most;
  const __m512 exact = exp_difference(rounded_product(score, e.scale), e.less);
  return _mm512_mask_mov_ps(most, e.large, exact);
}

// 32 queries, and what all keys need of them.
struct QueryLanes {
  Exponents exponents[2];
  __m512 scaled_delta[2];

  bool some_large() const { return exponents[0].large || exponents[1].large; }
};
// Those of a tile from `column` on.
BF16_TARGET BALORA_INLINE QueryLanes query_lanes(const GradTile<bf16>& t, int64_t column) {
  QueryLanes q;
  for (int half = 0; half < 2; ++half) {
    const int64_t at = column + 16 * half;
    const __mmask16 there = first16(t.block.queries - at);
    q.exponents[half] = exponents_of(t.geometry.scale, _mm512_maskz_loadu_ps(there, t.lse + at));
    q.scaled_delta[half] =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(there, t.delta + at), q.exponents[half].scale);
  }
  return q;
}

struct Gradients {
  __m512i p, ds;
};
// One key of 32 queries, of which kMasked has those that are `seen`. With `keeps_ds`
// dp becomes ds.
template <bool kMasked, bool kSomeLarge>
BF16_TARGET BALORA_INLINE Gradients key_gradients(const QueryLanes& q, const float* scores,
                                                  float* dp, bool keeps_ds, uint32_t seen) {
  __m512 p[2], ds[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Exponents& e = q.exponents[half];
    p[half] = probabilities<kSomeLarge>(e, _mm512_load_ps(scores + 16 * half));
    const __m512 slope =
        _mm512_fmsub_ps(_mm512_load_ps(dp + 16 * half), e.scale, q.scaled_delta[half]);
    ds[half] = _mm512_mul_ps(p[half], slope);
    if (kMasked) {
      const auto there = static_cast<__mmask16>(seen >> 16 * half);
      p[half] = _mm512_maskz_mov_ps(there, p[half]);
      ds[half] = _mm512_maskz_mov_ps(there, ds[half]);
    }
    if (keeps_ds) _mm512_store_ps(dp + 16 * half, ds[half]);
  }
  return {rounded(p[0], p[1]), rounded(ds[0], ds[1])};
}

// The lanes of 32 queries that see a key.
BALORA_INLINE uint32_t lanes_of(const KeyRow& key, int64_t column) {
  return key.lanes(column) | static_cast<uint32_t>(key.lanes(column + 16)) << 16;
}

// All keys of 32 queries, of which each sees every key where kWhole.
template <bool kWhole, bool kSomeLarge>
BF16_TARGET BALORA_INLINE void column_gradients(const GradTile<bf16>& t, const QueryLanes& queries,
                                                const Interleaved& order, int64_t column) {
  for (int64_t j = 0; j < t.padded_keys; j += 2) {
    const int64_t at = j * t.padded_queries + column, next = at + t.padded_queries;
    const int64_t p = j * t.p_stride + column, next_p = p + t.p_stride;
    bf16* const right = t.ds_right + j * t.right_stride + 2 * column;
    const uint32_t even = kWhole ? 0 : lanes_of(key_row(t, j), column);
    const uint32_t odd = kWhole ? 0 : lanes_of(key_row(t, j + 1), column);
    Gradients a{}, b{};
    if (kWhole || t.keeps_ds || (even | odd) != 0) {
      a = key_gradients<!kWhole, kSomeLarge>(queries, t.scores + at, t.dp + at, t.keeps_ds, even);
      b = key_gradients<!kWhole, kSomeLarge>(queries, t.scores + next, t.dp + next, t.keeps_ds,
                                             odd);
    }
    const Interleaved pairs = interleave(order, a.ds, b.ds);
    _mm512_store_si512(t.p + p, a.p);
    _mm512_store_si512(t.p + next_p, b.p);
    _mm512_store_si512(t.ds + p, a.ds);
    _mm512_store_si512(t.ds + next_p, b.ds);
    _mm512_store_si512(right, pairs.low);
    _mm512_store_si512(right + 32, pairs.high);
  }
}

// Two keys of 16 queries, stored as a pair; returns their sum.
template <bool kSomeLarge>
BF16_TARGET BALORA_INLINE __m512 two_keys(const Exponents& e, const float* s, int64_t ld, int64_t j,
                                          bf16* p) {
  const __m512 even = probabilities<kSomeLarge>(e, _mm512_load_ps(s + j * ld));
  const __m512 odd = probabilities<kSomeLarge>(e, _mm512_load_ps(s + (j + 1) * ld));
  _mm512_store_si512(p + j * ld, (__m512i)tiles::word_pairs(even, odd));
  return _mm512_add_ps(even, odd);
}

// All keys of 16 queries, added by fours.
template <bool kSomeLarge>
BF16_TARGET BALORA_INLINE __m512 sum_of_keys(const Exponents& e, const float* s, int64_t ld,
                                             int64_t first, int64_t last, bf16* p) {
  __m512 total = _mm512_setzero_ps();
  int64_t j = first;
  if (j % 4 != 0 && j < last) {
    total = two_keys<kSomeLarge>(e, s, ld, j, p);
    j += 2;
  }
  for (; j + 4 <= last; j += 4) {
    const __m512 low = two_keys<kSomeLarge>(e, s, ld, j, p);
    total = _mm512_add_ps(total, _mm512_add_ps(low, two_keys<kSomeLarge>(e, s, ld, j + 2, p)));
  }
  return j < last ? _mm512_add_ps(total, two_keys<kSomeLarge>(e, s, ld, j, p)) : total;
}

BF16_TARGET void rows_left(const Source<bf16>& s, bf16* out, int64_t r, int64_t d) {
  for (int64_t i = 0; i < r; ++i) {
    prefetch_row(s, i + kAhead);
    for (int64_t c = 0; c < d; c += 32) _mm512_store_si512(out + i * d + c, load_row(s, i, c));
  }
}

BF16_TARGET void rows_right(const Source<bf16>& s, bf16* out, int64_t r, int64_t d) {
  const Interleaved order = interleaving();
  for (int64_t i = 0; i < r; i += 2) {
    prefetch_row(s, i + kAhead);
    prefetch_row(s, i + kAhead + 1);
    for (int64_t c = 0; c < d; c += 32) {
      const Interleaved pairs = interleave(order, load_row(s, i, c), load_row(s, i + 1, c));
      _mm512_store_si512(out + i * d + 2 * c, pairs.low);
      _mm512_store_si512(out + i * d + 2 * c + 32, pairs.high);
    }
  }
}

// Row pairs as words, 16 pairs x 16 columns at a time, transposed.
BF16_TARGET void columns_left(const Source<bf16>& s, bf16* out, int64_t r, int64_t d) {
  const Interleaved order = interleaving();
  for (int64_t i = 0; i < r; i += 32) {
    for (int64_t c = 0; c < d; c += 32) {
      Words low[16], high[16];
#pragma GCC unroll 16
      for (int64_t pair = 0; pair < 16; ++pair) {
        const int64_t row = i + 2 * pair;
        const Interleaved pairs = interleave(order, load_row(s, row, c), load_row(s, row + 1, c));
        low[pair] = (Words)pairs.low, high[pair] = (Words)pairs.high;
      }
      transpose_rows(low);
      transpose_rows(high);
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l) {
        _mm512_store_si512(out + (c + l) * r + i, (__m512i)low[l]);
        _mm512_store_si512(out + (c + 16 + l) * r + i, (__m512i)high[l]);
      }
    }
  }
}

// Two columns of a row are one word already.
BF16_TARGET void columns_right(const Source<bf16>& s, bf16* out, int64_t r, int64_t d) {
  for (int64_t i = 0; i < r; i += 16) {
    for (int64_t l = 0; l < 16; ++l) prefetch_row(s, i + kAhead + l);
    for (int64_t c = 0; c < d; c += 32) {
      Words words[16];
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l) words[l] = (Words)load_row(s, i + l, c);
      transpose_rows(words);
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l) {
        _mm512_store_si512(out + (c + 2 * l) * r + 2 * i, (__m512i)words[l]);
      }
    }
  }
}

BF16_TARGET void unpack_rows(const float* sums, int64_t ld, bf16* out, int64_t stride, int64_t rows,
                             int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < size; c += 32) {
      const float* from = sums + i * ld + c;
      _mm512_mask_storeu_epi16(out + i * stride + c, first32(size - c),
                               rounded(_mm512_load_ps(from), _mm512_load_ps(from + 16)));
    }
  }
}

BF16_TARGET void unpack_columns(const float* sums, int64_t ld, const float* factors, bf16* out,
                                int64_t stride, int64_t rows, int64_t size) {
  for (int64_t i = 0; i < rows; i += 16) {
    const __m512 factor = factors ? _mm512_load_ps(factors + i) : _mm512_set1_ps(1.0f);
    for (int64_t c = 0; c < size; c += 16) {
      Words words[16];
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l) {
        words[l] = (Words)_mm512_mul_ps(_mm512_load_ps(sums + (c + l) * ld + i), factor);
      }
      transpose_rows(words);
      const auto columns = static_cast<__mmask16>(first32(size - c));
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l) {
        if (i + l >= rows) break;
        _mm256_mask_storeu_epi16(out + (i + l) * stride + c, columns,
                                 (__m256i)_mm512_cvtneps_pbh((__m512)words[l]));
      }
    }
  }
}

BF16_TARGET void row_dots(const Source<bf16>& x, const Source<bf16>& y, float* out) {
  for (int64_t i = 0; i < x.rows; ++i) {
    prefetch_row(y, i + kAhead);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < x.size; c += 32) {
      sum = _mm512_dpbf16_ps(sum, (__m512bh)load_row(x, i, c), (__m512bh)load_row(y, i, c));
    }
    out[i] = _mm512_reduce_add_ps(sum);
  }
}

BF16_TARGET void gradient(const GradTile<bf16>& t) {
  const Interleaved order = interleaving();
  for (int64_t column = 0; column < t.padded_queries; column += 32) {
    const QueryLanes queries = query_lanes(t, column);
    if (queries.some_large()) {
      column_gradients<false, true>(t, queries, order, column);
    } else if (key_row(t, 0).sees(column, 32) && key_row(t, t.padded_keys - 1).sees(column, 32)) {
      column_gradients<true, false>(t, queries, order, column);
    } else {
      column_gradients<false, false>(t, queries, order, column);
    }
  }
}

// p = e^(s * scale - highest) of 16 queries, as row pairs; sum gets the sums over the keys.
BF16_TARGET void exponentials(const SoftmaxTile<bf16>& t, int64_t column, const BlockKeys& keys,
                              const Wide<float>& highest, Wide<float>& sum) {
  const Exponents e = exponents_of(t.geometry.scale, (__m512)highest);
  const float* const s = t.scores + column;
  bf16* const p = t.p + 2 * column;
  const int64_t ld = t.padded_queries;
  sum = e.large ? sum_of_keys<true>(e, s, ld, keys.first, keys.last, p)
                : sum_of_keys<false>(e, s, ld, keys.first, keys.last, p);
}

AVX512_TARGET void softmax(const SoftmaxTile<bf16>& t) {
  softmax_columns<Wide<float>, bf16, &exponentials>(t);
}

constexpr AttentionCore<bf16, bf16> core_with(int64_t block, int64_t heads) {
  return {.rows_left = rows_left,
          .rows_right = rows_right,
          .columns_left = columns_left,
          .columns_right = columns_right,
          .unpack_rows = unpack_rows,
          .unpack_columns = unpack_columns,
          .row_dots = row_dots,
          .softmax = softmax,
          .gradient = gradient,
          .block = block,
          .heads = heads};
}

}  // namespace

constinit const AttentionCore<bf16, bf16> avx512_bf16_core = core_with(kTile, 1);
constinit const AttentionCore<bf16, bf16> amx_core = core_with(kTile / 2, kMostHeads);

}  // namespace balora::attention::x86
