// The core for any processor, in loops that the compiler finds instructions for: operands in and
// out of their packed orders, the online softmax and the gradient of the scores.
#include "kernels/cpu/attention/attention_softmax.h"
#include "kernels/cpu/runtime/levels.h"

namespace balora::attention {
namespace {

template <typename X>
BALORA_INLINE void fill_outside(X* row, Columns inner, int64_t first, int64_t last, X value) {
  for (int64_t j = first; j < inner.first; ++j) row[j] = value;
  for (int64_t j = inner.last; j < last; ++j) row[j] = value;
}

template <typename A, int kBytes>
BALORA_INLINE void gradient_rows(const GradTile<A>& t) {
  using V = Vector<A, kBytes>;
  const int64_t ld = t.padded_keys;
  for (int64_t row = 0; row < t.block.queries; ++row) {
    const Columns seen = seen_in_row(t, row);
    A *p = t.p + row * ld, *ds = t.ds + row * ld;
    const int64_t first = block_first(seen), last = std::max(first, block_last(seen));
    for (int64_t j = first; j < last; j += kLanesOf<V>) {
      V s, dp;
      load_wide(t.scores + row * ld + j, s);
      load_wide(t.dp + row * ld + j, dp);
      exp_unit<V>(s - t.lse[row], s);
      dp = s * (dp - t.delta[row]);
      store_wide(s, p + j);
      store_wide(dp, ds + j);
    }
    const Columns inner = seen.first < seen.last ? seen : Columns{0, 0};
    fill_outside(p, inner, 0, ld, A(0));
    fill_outside(ds, inner, 0, ld, A(0));
  }
  std::fill(t.p + t.block.queries * ld, t.p + t.padded_queries * ld, A(0));
  std::fill(t.ds + t.block.queries * ld, t.ds + t.padded_queries * ld, A(0));
}

template <typename A, int kBytes>
BALORA_INLINE void softmax_tile(const SoftmaxTile<A>& t) {
  using V = Vector<A, kBytes>;
  softmax_columns<V, A, &sum_exponentials<V, A>>(t);
}

// ---- operands -----------------------------------------------------------------------------------

template <typename T, typename E>
BALORA_INLINE E convert(T value) {
  if constexpr (std::is_same_v<T, E>) {
    return value;
  } else {
    return store<E>(load(value));
  }
}

template <typename T, typename E>
BALORA_INLINE void pack_rows(const Source<T>& s, E* out, int64_t r, int64_t d) {
  for (int64_t i = 0; i < s.rows; ++i) {
    const T* row = s.data + i * s.stride;
#pragma omp simd
    for (int64_t c = 0; c < s.size; ++c) out[i * d + c] = convert<T, E>(row[c]);
    for (int64_t c = s.size; c < d; ++c) out[i * d + c] = E{};
  }
  std::fill(out + s.rows * d, out + r * d, E{});
}

// Blocks of as many rows as a vector has lanes are transposed in registers, where a compiler would
// gather elements.
template <typename T, typename E, int kBytes>
BALORA_INLINE void pack_blocks(const Source<T>& s, E* out, int64_t r, int64_t d) {
  using V = Vector<E, kBytes>;
  constexpr int64_t n = kLanesOf<V>;
  for (int64_t i = 0; i < r; i += n) {
    for (int64_t c = 0; c < d; c += n) {
      T padded[n * n];
      const T* from = s.data + i * s.stride + c;
      int64_t stride = s.stride;
      if (i + n > s.rows || c + n > s.size) {
        std::fill_n(padded, n * n, T{});
        const int64_t rows = std::min(s.rows - i, n), size = std::min(s.size - c, n);
        for (int64_t l = 0; l < rows; ++l) {
          for (int64_t e = 0; e < size; ++e) padded[l * n + e] = from[l * stride + e];
        }
        from = padded, stride = n;
      }
      V rows[n];
#pragma GCC unroll 16
      for (int64_t l = 0; l < n; ++l, from += stride) load_wide(from, rows[l]);
      transpose_rows(rows);
      E* to = out + c * r + i;
#pragma GCC unroll 16
      for (int64_t l = 0; l < n; ++l, to += r) store_wide(rows[l], to);
    }
  }
}

template <typename T, typename A>
BALORA_INLINE void unpack_rows(const A* sums, int64_t ld, T* out, int64_t stride, int64_t rows,
                               int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    const A* from = sums + i * ld;
    T* to = out + i * stride;
#pragma omp simd
    for (int64_t d = 0; d < size; ++d) to[d] = store<T>(from[d]);
  }
}

template <typename T, typename A>
BALORA_INLINE void unpack_columns(const A* sums, int64_t ld, const A* factors, T* out,
                                  int64_t stride, int64_t rows, int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    const A factor = factors ? factors[i] : A(1);
    T* to = out + i * stride;
#pragma omp simd
    for (int64_t d = 0; d < size; ++d) to[d] = store<T>(sums[d * ld + i] * factor);
  }
}

template <typename T, typename A>
BALORA_INLINE void dot_rows(const Source<T>& x, const Source<T>& y, A* out) {
  for (int64_t i = 0; i < x.rows; ++i) {
    const T *a = x.data + i * x.stride, *b = y.data + i * y.stride;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < x.size; ++d) sum += load(a[d]) * load(b[d]);
    out[i] = sum;
  }
}

template <typename T, typename E>
void pack_columns(const Source<T>& s, E* out, int64_t r, int64_t d) {
  at_width<&pack_blocks<T, E, 16>, &pack_blocks<T, E, 32>, &pack_blocks<T, E, 64>>(s, out, r, d);
}

template <typename T, typename E>
constexpr AttentionCore<T, E> kAnyCore = {
    .rows_left = [](const Source<T>& s, E* out, int64_t r,
                    int64_t d) { at_level<&pack_rows<T, E>>(s, out, r, d); },
    .rows_right = [](const Source<T>& s, E* out, int64_t r,
                     int64_t d) { at_level<&pack_rows<T, E>>(s, out, r, d); },
    .columns_left = pack_columns<T, E>,
    .columns_right = pack_columns<T, E>,
    .unpack_rows =
        [](const E* sums, int64_t ld, T* out, int64_t stride, int64_t rows, int64_t size) {
          at_level<&unpack_rows<T, E>>(sums, ld, out, stride, rows, size);
        },
    .unpack_columns =
        [](const E* sums, int64_t ld, const E* factors, T* out, int64_t stride, int64_t rows,
           int64_t size) {
          at_level<&unpack_columns<T, E>>(sums, ld, factors, out, stride, rows, size);
        },
    .row_dots = [](const Source<T>& x, const Source<T>& y,
                   E* out) { at_level<&dot_rows<T, E>>(x, y, out); },
    .softmax =
        [](const SoftmaxTile<E>& tile) {
          at_width<&softmax_tile<E, 16>, &softmax_tile<E, 32>, &softmax_tile<E, 64>>(tile);
        },
    .gradient =
        [](const GradTile<E>& tile) {
          at_width<&gradient_rows<E, 16>, &gradient_rows<E, 32>, &gradient_rows<E, 64>>(tile);
        },
};

}  // namespace

template <typename T, typename E>
const AttentionCore<T, E>& any_core() {
  return kAnyCore<T, E>;
}
template const AttentionCore<float, float>& any_core();
template const AttentionCore<f16, float>& any_core();
template const AttentionCore<bf16, float>& any_core();
template const AttentionCore<double, double>& any_core();

}  // namespace balora::attention
