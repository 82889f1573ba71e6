// Operands of the tile products in and out of their packed orders.
#include <algorithm>

#include "kernels/cpu/attention/attention_avx512.h"
#include "kernels/cpu/attention/attention_bf16.h"
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/runtime/levels.h"
#include "platform/cpu.h"

namespace balora::attention {
namespace {

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

template <typename T, typename E>
BALORA_INLINE void pack_columns(const Source<T>& s, E* out, int64_t r, int64_t d) {
  for (int64_t c = 0; c < s.size; ++c) {
    for (int64_t i = 0; i < s.rows; ++i) out[c * r + i] = convert<T, E>(s.data[i * s.stride + c]);
    for (int64_t i = s.rows; i < r; ++i) out[c * r + i] = E{};
  }
  std::fill(out + s.size * r, out + d * r, E{});
}

template <typename T, typename E>
BALORA_INLINE void pack_rows_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  if constexpr (std::is_same_v<E, bf16>) {
    for (int64_t i = 0; i < r; i += 2) {
      const T *even = s.data + i * s.stride, *odd = even + s.stride;
      const int64_t rows = s.rows - i;
      E* pairs = out + i * d;
      std::fill(pairs, pairs + 2 * d, E{});
      if (rows >= 2) {
        interleave(even, odd, pairs, s.size);
      } else if (rows == 1) {
        for (int64_t c = 0; c < s.size; ++c) pairs[2 * c] = even[c];
      }
    }
  } else {
    pack_rows<T, E>(s, out, r, d);
  }
}

template <typename T, typename E>
BALORA_INLINE void pack_columns_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  if constexpr (std::is_same_v<E, bf16>) {
    std::fill(out, out + r * d, E{});
    for (int64_t c = 0; c < s.size; ++c) {
      E* pairs = out + (c & ~int64_t{1}) * r + (c & 1);
      for (int64_t i = 0; i < s.rows; ++i) pairs[2 * i] = convert<T, E>(s.data[i * s.stride + c]);
    }
  } else {
    pack_columns<T, E>(s, out, r, d);
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

}  // namespace

// A row loop in instructions that only some CPUs have, where this one has them: those of AVX-512
// for tiles and sums of f32, those of AVX512-BF16 for tiles of bf16 and sums that are stored so.
#ifdef BALORA_TILES
#define IN_AVX512(type, loop)                                         \
  if constexpr (std::is_same_v<type, float>) {                        \
    if (platform::cpu().uses(platform::kAvx512)) return avx512::loop; \
  }
#define IN_BF16(loop)                             \
  if constexpr (std::is_same_v<T, bf16>) {        \
    if (tile_gemm_has_bf16()) return lanes::loop; \
  }
// Tiles are bf16 only where the CPU multiplies them.
#define IN_BF16_TILES(lanes_loop, loop)    \
  if constexpr (std::is_same_v<E, bf16>) { \
    lanes::lanes_loop;                     \
  } else {                                 \
    loop;                                  \
  }
#else
#define IN_AVX512(type, loop)
#define IN_BF16(loop)
#define IN_BF16_TILES(lanes_loop, loop) loop;
#endif

template <typename T, typename E>
void Packing<T, E>::rows_left(const Source<T>& s, E* out, int64_t r, int64_t d) {
  IN_AVX512(E, rows(s, out, r, d))
  IN_BF16_TILES(rows_left(s, out, r, d), (at_level<&pack_rows<T, E>>(s, out, r, d)))
}
template <typename T, typename E>
void Packing<T, E>::rows_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  IN_AVX512(E, rows(s, out, r, d))
  IN_BF16_TILES(rows_right(s, out, r, d), (at_level<&pack_rows_right<T, E>>(s, out, r, d)))
}
template <typename T, typename E>
void Packing<T, E>::columns_left(const Source<T>& s, E* out, int64_t r, int64_t d) {
  IN_AVX512(E, columns(s, out, r, d))
  IN_BF16_TILES(columns_left(s, out, r, d), (at_level<&pack_columns<T, E>>(s, out, r, d)))
}
template <typename T, typename E>
void Packing<T, E>::columns_right(const Source<T>& s, E* out, int64_t r, int64_t d) {
  IN_AVX512(E, columns(s, out, r, d))
  IN_BF16_TILES(columns_right(s, out, r, d), (at_level<&pack_columns_right<T, E>>(s, out, r, d)))
}
template <typename T>
void Unpacking<T>::rows(const Acc<T>* sums, int64_t ld, T* out, int64_t stride, int64_t rows,
                        int64_t size) {
  IN_BF16(unpack_rows(sums, ld, out, stride, rows, size))
  IN_AVX512(Acc<T>, unpack_rows(sums, ld, out, stride, rows, size))
  at_level<&unpack_rows<T, Acc<T>>>(sums, ld, out, stride, rows, size);
}
template <typename T>
void Unpacking<T>::columns(const Acc<T>* sums, int64_t ld, T* out, int64_t stride, int64_t rows,
                           int64_t size, const Acc<T>* factors) {
  IN_BF16(unpack_columns(sums, ld, factors, out, stride, rows, size))
  IN_AVX512(Acc<T>, unpack_columns(sums, ld, factors, out, stride, rows, size))
  at_level<&unpack_columns<T, Acc<T>>>(sums, ld, factors, out, stride, rows, size);
}
template <typename T>
void Unpacking<T>::row_dots(const Source<T>& x, const Source<T>& y, Acc<T>* out) {
  IN_BF16(row_dots(x, y, out))
  IN_AVX512(Acc<T>, row_dots(x, y, out))
  at_level<&dot_rows<T, Acc<T>>>(x, y, out);
}
#undef IN_BF16_TILES
#undef IN_AVX512
#undef IN_BF16

template struct Packing<float, float>;
template struct Packing<bf16, bf16>;
template struct Packing<bf16, float>;
template struct Packing<f16, float>;
template struct Packing<double, double>;
template struct Unpacking<float>;
template struct Unpacking<bf16>;
template struct Unpacking<f16>;
template struct Unpacking<double>;

}  // namespace balora::attention
