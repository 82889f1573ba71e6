// The core of attention in AVX-512 instructions, for tiles of f32, and the softmax of tiles of
// bf16: whole vectors of rows are transposed, where a compiler gathers elements, and an exponential
// takes half of the instructions.
#include <limits>

#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/attention/x86/attention_bf16.h"
#include "kernels/cpu/products/tile_block.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/x86/lanes.h"

namespace balora::attention::x86 {
namespace {

using balora::lanes::all;
using balora::lanes::exp_difference;
using balora::lanes::first16;
using balora::lanes::first32;
using balora::lanes::rounded_product;

// ---- operands in and out of their packed orders -------------------------------------------------

AVX512_TARGET BALORA_INLINE __m512 load16(const float* from, __mmask16 there) {
  return _mm512_maskz_loadu_ps(there, from);
}
AVX512_TARGET BALORA_INLINE __m512 load16(const f16* from, __mmask16 there) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, from));
}
AVX512_TARGET BALORA_INLINE __m512 load16(const bf16* from, __mmask16 there) {
  return balora::lanes::load_bf16(from, there);
}
AVX512_TARGET BALORA_INLINE void store16(float* to, __mmask16 there, __m512 values) {
  _mm512_mask_storeu_ps(to, there, values);
}
AVX512_TARGET BALORA_INLINE void store16(f16* to, __mmask16 there, __m512 values) {
  _mm256_mask_storeu_epi16(to, there,
                           _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Rounded to bf16, in the upper halves. A NaN comes from the operands or an invalid operation and
// has zeros in its low bits, so it stays one.
AVX512_TARGET BALORA_INLINE __m512i rounded_words(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

template <typename T>
AVX512_TARGET BALORA_INLINE void rows_of(const Source<T>& s, float* out, int64_t r, int64_t d) {
  const int64_t size = s.size, whole = size / 16 * 16;
  for (int64_t i = 0; i < s.rows; ++i) {
    const T* from = s.data + i * s.stride;
    float* to = out + i * d;
    for (int64_t c = 0; c < whole; c += 16) _mm512_store_ps(to + c, load16(from + c, 0xffff));
    for (int64_t c = whole; c < d; c += 16) {
      _mm512_store_ps(to + c, load16(from + c, first16(size - c)));
    }
  }
  for (int64_t at = s.rows * d; at < r * d; at += 16) {
    _mm512_store_ps(out + at, _mm512_setzero_ps());
  }
}

// 16 rows x 16 columns at a time. Pointers are moved on from row to row: so many products with a
// stride would not fit the registers.
template <typename T>
AVX512_TARGET BALORA_INLINE void columns_of(const Source<T>& s, float* out, int64_t r, int64_t d) {
  for (int64_t i = 0; i < r; i += 16) {
    for (int64_t c = 0; c < d; c += 16) {
      const __mmask16 there = first16(s.size - c);
      Words words[16];
      const T* from = s.data + i * s.stride + c;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, from += s.stride) {
        words[l] = (Words)load16(from, i + l < s.rows ? there : __mmask16{0});
      }
      transpose_words(words);
      float* to = out + c * r + i;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, to += r) _mm512_storeu_ps(to, (__m512)words[l]);
    }
  }
}

// Two columns of a row are one word: half of the transposes.
AVX512_TARGET BALORA_INLINE void columns_of(const Source<bf16>& s, float* out, int64_t r,
                                            int64_t d) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int64_t i = 0; i < r; i += 16) {
    for (int64_t c = 0; c < d; c += 32) {
      const __mmask32 there = first32(s.size - c);
      Words words[16];
      const bf16* from = s.data + i * s.stride + c;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, from += s.stride) {
        words[l] = (Words)_mm512_maskz_loadu_epi16(i + l < s.rows ? there : 0, from);
      }
      transpose_words(words);
      float* to = out + c * r + i;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, to += 2 * r) {
        const auto pair = (__m512i)words[l];
        _mm512_storeu_si512(to, _mm512_slli_epi32(pair, 16));
        _mm512_storeu_si512(to + r, _mm512_and_si512(pair, upper));
      }
    }
  }
}

template <typename T>
AVX512_TARGET BALORA_INLINE void round_rows(const float* sums, int64_t ld, T* out, int64_t stride,
                                            int64_t rows, int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < size; c += 16) {
      store16(out + i * stride + c, first16(size - c), _mm512_load_ps(sums + i * ld + c));
    }
  }
}

// 32 values at a time.
AVX512_TARGET BALORA_INLINE void round_rows(const float* sums, int64_t ld, bf16* out,
                                            int64_t stride, int64_t rows, int64_t size) {
  // Packing keeps quarters of a vector: those of one come before those of the other.
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = sums + i * ld;
    bf16* to = out + i * stride;
    for (int64_t c = 0; c < size; c += 32) {
      const __m512i low = _mm512_srli_epi32(rounded_words(_mm512_load_ps(from + c)), 16);
      const __m512i high = _mm512_srli_epi32(rounded_words(_mm512_load_ps(from + c + 16)), 16);
      const __m512i both = _mm512_permutexvar_epi64(in_order, _mm512_packus_epi32(low, high));
      _mm512_mask_storeu_epi16(to + c, first32(size - c), both);
    }
  }
}

template <typename T>
AVX512_TARGET BALORA_INLINE void unpack(const float* sums, int64_t ld, const float* factors, T* out,
                                        int64_t stride, int64_t rows, int64_t size) {
  for (int64_t i = 0; i < rows; i += 16) {
    const __m512 factor = factors ? _mm512_loadu_ps(factors + i) : all(1.0f);
    for (int64_t c = 0; c < size; c += 16) {
      Words words[16];
      const float* from = sums + c * ld + i;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, from += ld) {
        words[l] = (Words)_mm512_mul_ps(_mm512_loadu_ps(from), factor);
      }
      transpose_words(words);
      const __mmask16 there = first16(size - c);
      T* to = out + i * stride + c;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, to += stride) {
        store16(to, i + l < rows ? there : __mmask16{0}, (__m512)words[l]);
      }
    }
  }
}

AVX512_TARGET BALORA_INLINE void unpack(const float* sums, int64_t ld, const float* factors,
                                        bf16* out, int64_t stride, int64_t rows, int64_t size) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int64_t i = 0; i < rows; i += 16) {
    const __m512 factor = factors ? _mm512_loadu_ps(factors + i) : all(1.0f);
    for (int64_t c = 0; c < size; c += 32) {
      Words words[16];
      const float* from = sums + c * ld + i;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, from += 2 * ld) {
        const __m512i even = rounded_words(_mm512_mul_ps(_mm512_loadu_ps(from), factor));
        const __m512i odd = rounded_words(_mm512_mul_ps(_mm512_loadu_ps(from + ld), factor));
        words[l] =
            (Words)_mm512_or_si512(_mm512_srli_epi32(even, 16), _mm512_and_si512(odd, upper));
      }
      transpose_words(words);
      const __mmask32 there = first32(size - c);
      bf16* to = out + i * stride + c;
#pragma GCC unroll 16
      for (int64_t l = 0; l < 16; ++l, to += stride) {
        _mm512_mask_storeu_epi16(to, i + l < rows ? there : 0, (__m512i)words[l]);
      }
    }
  }
}

template <typename T>
AVX512_TARGET BALORA_INLINE void dots_of(const Source<T>& x, const Source<T>& y, float* out) {
  for (int64_t i = 0; i < x.rows; ++i) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < x.size; c += 16) {
      const __mmask16 there = first16(x.size - c);
      sum = _mm512_fmadd_ps(load16(x.data + i * x.stride + c, there),
                            load16(y.data + i * y.stride + c, there), sum);
    }
    out[i] = _mm512_reduce_add_ps(sum);
  }
}

// Two values of a row are one word, whose products are added to the same sum.
AVX512_TARGET BALORA_INLINE void dots_of(const Source<bf16>& x, const Source<bf16>& y, float* out) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int64_t i = 0; i < x.rows; ++i) {
    const bf16 *left = x.data + i * x.stride, *right = y.data + i * y.stride;
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int64_t c = 0; c < x.size; c += 32) {
      const __mmask32 there = first32(x.size - c);
      const __m512i a = _mm512_maskz_loadu_epi16(there, left + c);
      const __m512i b = _mm512_maskz_loadu_epi16(there, right + c);
      even =
          _mm512_fmadd_ps((__m512)_mm512_slli_epi32(a, 16), (__m512)_mm512_slli_epi32(b, 16), even);
      odd = _mm512_fmadd_ps((__m512)_mm512_and_si512(a, upper), (__m512)_mm512_and_si512(b, upper),
                            odd);
    }
    out[i] = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
  }
}

// ---- the scores of a block of 16 queries --------------------------------------------------------

// Rows [first, last) of a block, rows ld apart, become zeros.
AVX512_TARGET BALORA_INLINE void clear_rows(float* rows, int64_t ld, int64_t first, int64_t last) {
  for (int64_t j = first; j < last; ++j) _mm512_store_ps(rows + j * ld, _mm512_setzero_ps());
}

// The same of probabilities; first and last are even.
AVX512_TARGET BALORA_INLINE void clear_keys(const SoftmaxTile<float>& t, int64_t column,
                                            int64_t first, int64_t last) {
  clear_rows(t.p + column, t.padded_queries, first, last);
}
AVX512_TARGET BALORA_INLINE void clear_keys(const SoftmaxTile<bf16>& t, int64_t column,
                                            int64_t first, int64_t last) {
  bf16* pairs = t.p + 2 * column;
  for (int64_t j = first; j < last; j += 2) {
    _mm512_store_si512(pairs + j * t.padded_queries, _mm512_setzero_si512());
  }
}

// Scores that a query of the block does not see become -infinity, where not every query sees them.
template <typename E>
AVX512_TARGET BALORA_INLINE void hide_unseen(const SoftmaxTile<E>& t, int64_t column,
                                             const BlockKeys& keys) {
  const __m512 none = all(-std::numeric_limits<float>::infinity());
  for (int64_t j = keys.first; j < keys.last; ++j) {
    if (j == keys.all_first) j = keys.all_last;
    if (j >= keys.last) break;
    float* scores = t.scores + j * t.padded_queries + column;
    _mm512_mask_store_ps(scores, static_cast<__mmask16>(~key_row(t, j).lanes(column)), none);
  }
}

// The maxima of the block's scores, several side by side: one alone would wait for itself.
AVX512_TARGET BALORA_INLINE __m512 block_maxima(const float* scores, int64_t ld, int64_t first,
                                                int64_t last) {
  const __m512 none = all(-std::numeric_limits<float>::infinity());
  __m512 top[4] = {none, none, none, none};
  int64_t j = first;
  for (; j + 4 <= last; j += 4) {
#pragma GCC unroll 4
    for (int64_t u = 0; u < 4; ++u) {
      top[u] = _mm512_max_ps(_mm512_load_ps(scores + (j + u) * ld), top[u]);
    }
  }
  for (; j < last; ++j) top[0] = _mm512_max_ps(_mm512_load_ps(scores + j * ld), top[0]);
  return _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
}

// p = e^(s * scale - highest) of the block, of which tiles of f32 have no scale; returns its sums
// over the keys.
AVX512_TARGET BALORA_INLINE __m512 exponentials(const SoftmaxTile<float>& t, int64_t column,
                                                const BlockKeys& keys, __m512 highest) {
  const int64_t ld = t.padded_queries;
  const float* s = t.scores + column;
  float* p = t.p + column;
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t j = keys.first; j < keys.last; j += 2) {
#pragma GCC unroll 2
    for (int64_t u = 0; u < 2; ++u) {
      const __m512 value = exp_difference(_mm512_load_ps(s + (j + u) * ld), highest);
      _mm512_store_ps(p + (j + u) * ld, value);
      sum[u] = _mm512_add_ps(sum[u], value);
    }
  }
  return _mm512_add_ps(sum[0], sum[1]);
}
AVX512_TARGET BALORA_INLINE __m512 exponentials(const SoftmaxTile<bf16>& t, int64_t column,
                                                const BlockKeys& keys, __m512 highest) {
  float top[16], sum[16];
  _mm512_storeu_ps(top, highest);
  x86::exponentials(t.scores + column, t.padded_queries, keys.first, keys.last,
                    static_cast<float>(t.geometry.scale), top, t.p + 2 * column, sum);
  return _mm512_loadu_ps(sum);
}

template <typename E>
AVX512_TARGET BALORA_INLINE void softmax_block(const SoftmaxTile<E>& t, int64_t column) {
  const __m512 none = all(-std::numeric_limits<float>::infinity());
  const BlockKeys keys = keys_of_block(t, column);
  const int64_t ld = t.padded_queries;
  hide_unseen(t, column, keys);
  const __m512 here = rounded_product(block_maxima(t.scores + column, ld, keys.first, keys.last),
                                      all(static_cast<float>(t.geometry.scale)));
  const __m512 before = _mm512_load_ps(t.highest + column);
  const __mmask16 raised =
      _mm512_cmp_ps_mask(here, _mm512_add_ps(before, all(kSlack<E>)), _CMP_GT_OQ);
  const __m512 both = _mm512_mask_mov_ps(before, raised, here);
  _mm512_store_ps(t.highest + column, both);
  // Where nothing was seen yet, 0 instead of -infinity: differences are -infinity and not NaN.
  const __m512 highest = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(both, none, _CMP_NEQ_UQ), both);
  clear_keys(t, column, 0, keys.first);
  const __m512 sum = exponentials(t, column, keys, highest);
  clear_keys(t, column, keys.last, t.padded_keys);
  __m512 total = _mm512_load_ps(t.total + column);
  // Before the first key that is seen, the sums are 0.
  if (_mm512_mask_cmp_ps_mask(raised, before, none, _CMP_NEQ_UQ)) {
    const __m512 rescale = exp_difference(before, highest);
    const __m512 factors = _mm512_mask_mov_ps(all(1.0f), raised, rescale);
    total = _mm512_mul_ps(total, factors);
    for (int64_t d = 0; d < t.padded_size; ++d) {
      float* out = t.out + d * ld + column;
      _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), factors));
    }
  }
  _mm512_store_ps(t.total + column, _mm512_add_ps(total, sum));
}

template <typename E>
AVX512_TARGET BALORA_INLINE void softmax_blocks(const SoftmaxTile<E>& t) {
  for (int64_t column = 0; column < t.padded_queries; column += kLanes) {
    if (column < t.queries) {
      softmax_block(t, column);
    } else {
      clear_keys(t, column, 0, t.padded_keys);
    }
  }
}

// Keys of a query's row from `place` on. What is not `seen` gets zeros.
template <bool kMasked>
AVX512_TARGET BALORA_INLINE void gradient_lanes(const GradTile<float>& t, int64_t place, __m512 lse,
                                                __m512 delta, __mmask16 seen) {
  __m512 p = exp_difference(_mm512_load_ps(t.scores + place), lse);
  __m512 ds = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_load_ps(t.dp + place), delta));
  if (kMasked) {
    p = _mm512_maskz_mov_ps(seen, p);
    ds = _mm512_maskz_mov_ps(seen, ds);
  }
  _mm512_store_ps(t.p + place, p);
  _mm512_store_ps(t.ds + place, ds);
}
AVX512_TARGET BALORA_INLINE void no_gradient(const GradTile<float>& t, int64_t first,
                                             int64_t last) {
  for (int64_t place = first; place < last; place += kLanes) {
    _mm512_store_ps(t.p + place, _mm512_setzero_ps());
    _mm512_store_ps(t.ds + place, _mm512_setzero_ps());
  }
}

AVX512_TARGET BALORA_INLINE void gradient_query(const GradTile<float>& t, int64_t i) {
  const int64_t row = i * t.padded_keys;
  const Columns seen = keys_of_query(t, i);
  const int64_t first = seen.first / kLanes * kLanes;
  const int64_t last = std::max(first, (seen.last + kLanes - 1) / kLanes * kLanes);
  const __m512 lse = all(t.lse[i]), delta = all(t.delta[i]);
  no_gradient(t, row, row + first);
  for (int64_t c = first; c < last; c += kLanes) {
    if (seen.first <= c && c + kLanes <= seen.last) {
      gradient_lanes<false>(t, row + c, lse, delta, 0xffff);
    } else {
      const int64_t lanes = first16(seen.last - c) & ~first16(seen.first - c);
      gradient_lanes<true>(t, row + c, lse, delta, static_cast<__mmask16>(lanes));
    }
  }
  no_gradient(t, row + last, row + t.padded_keys);
}

// The scores of four queries beside each other and all keys of a tile.
using Lanes = tile_block::VectorOf<float, 64>::type;
using Sums = Lanes[4][kTile / kLanes];

AVX512_TARGET BALORA_INLINE void four_queries(const float* x, const float* y, int64_t d,
                                              Sums& sums) {
#pragma GCC unroll 4
  for (Lanes(&row)[kTile / kLanes] : sums) {
#pragma GCC unroll 4
    for (Lanes& sum : row) sum = Lanes{};
  }
  tile_block::add_products<tile_block::Left::kRows, 4, kTile / kLanes, 64>(d, x, d, y, kTile, sums);
}

AVX512_TARGET BALORA_INLINE void whole_gradients(const WholePair& t, int64_t i) {
  Sums sums;
  four_queries(t.q + i * t.size, t.keys, t.size, sums);
#pragma GCC unroll 4
  for (int64_t r = 0; r < 4; ++r) {
    const __m512 lse = all(t.lse[i + r]);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTile / kLanes; ++v) {
      _mm512_store_ps(t.p + (i + r) * kTile + v * kLanes, exp_difference((__m512)sums[r][v], lse));
    }
  }
  four_queries(t.dout + i * t.size, t.values, t.size, sums);
#pragma GCC unroll 4
  for (int64_t r = 0; r < 4; ++r) {
    const __m512 delta = all(t.delta[i + r]);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTile / kLanes; ++v) {
      const int64_t place = (i + r) * kTile + v * kLanes;
      const __m512 slope = _mm512_sub_ps((__m512)sums[r][v], delta);
      _mm512_store_ps(t.ds + place, _mm512_mul_ps(_mm512_load_ps(t.p + place), slope));
    }
  }
}

AVX512_TARGET void f32_softmax(const SoftmaxTile<float>& t) {
  softmax_blocks(t);
}

AVX512_TARGET void f32_gradient(const GradTile<float>& t) {
  for (int64_t i = 0; i < t.queries; ++i) gradient_query(t, i);
  no_gradient(t, t.queries * t.padded_keys, t.padded_queries * t.padded_keys);
}

AVX512_TARGET void f32_whole_gradient(const WholePair& pair) {
  for (int64_t i = 0; i < kTile; i += 4) whole_gradients(pair, i);
}

// Rows of T, which become tiles of f32.
template <typename T>
struct Rows {
  AVX512_TARGET static void pack_rows(const Source<T>& s, float* out, int64_t r, int64_t d) {
    rows_of(s, out, r, d);
  }
  AVX512_TARGET static void pack_columns(const Source<T>& s, float* out, int64_t r, int64_t d) {
    columns_of(s, out, r, d);
  }
  AVX512_TARGET static void unpack_rows(const float* sums, int64_t ld, T* out, int64_t stride,
                                        int64_t count, int64_t size) {
    round_rows(sums, ld, out, stride, count, size);
  }
  AVX512_TARGET static void unpack_columns(const float* sums, int64_t ld, const float* factors,
                                           T* out, int64_t stride, int64_t count, int64_t size) {
    unpack(sums, ld, factors, out, stride, count, size);
  }
  AVX512_TARGET static void row_dots(const Source<T>& x, const Source<T>& y, float* out) {
    dots_of(x, y, out);
  }

  static constexpr AttentionCore<T, float> kCore = {.rows_left = pack_rows,
                                                    .rows_right = pack_rows,
                                                    .columns_left = pack_columns,
                                                    .columns_right = pack_columns,
                                                    .unpack_rows = unpack_rows,
                                                    .unpack_columns = unpack_columns,
                                                    .row_dots = row_dots,
                                                    .softmax = f32_softmax,
                                                    .gradient = f32_gradient,
                                                    .whole_gradient = f32_whole_gradient};
};

}  // namespace

constinit const AttentionCore<float, float> avx512_core = Rows<float>::kCore;
constinit const AttentionCore<f16, float> avx512_f16_core = Rows<f16>::kCore;
constinit const AttentionCore<bf16, float> avx512_widened_core = Rows<bf16>::kCore;

AVX512_TARGET void softmax(const SoftmaxTile<bf16>& t) {
  softmax_blocks(t);
}

}  // namespace balora::attention::x86
