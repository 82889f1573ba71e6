// The row loops of attention on one tile: packing operands for tile_gemm, the online softmax of the
// forward, and the gradient of the scores. T is the storage type of q, k and v, E the type the
// products run in (bf16 where the CPU multiplies it, else f32; f64 for f64), A = Acc<E> the type of
// scores and sums.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/cpu/attention/attention_plan.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora::attention {

// Rows of D values, `stride` elements apart, of which a tile has `rows`.
template <typename T>
struct Source {
  const T* data;
  int64_t stride;
  int64_t rows, size;
};

// Rows of the heads of an operand: (row, head) starts at data + row * stride + head * size.
// Undefined without a view.
template <typename T>
struct Heads {
  T* data = nullptr;
  int64_t stride = 0, size = 0;
  explicit Heads(const View* view) {
    if (!view) return;
    data = data_of<T>(view), stride = view->stride[0], size = view->shape[2];
  }
  T* at(int64_t row, int64_t head) const { return data + row * stride + head * size; }
  Source<T> source(int64_t row, int64_t head, int64_t rows) const {
    return {at(row, head), stride, rows, size};
  }
};

template <typename T>
void clear_rows(const Heads<T>& heads, int64_t count, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    std::fill(heads.at(row, 0), heads.at(row, count), T{});
  }
}

// Forward, transposed: one key tile (rows) against one query tile (columns). scores (k,r) become
// probabilities in p, a B operand over keys, which may be in their place; highest, total (r) and
// the columns of out (d,r) are brought to the new maximum, which may lie below the highest score by
// a few units.
template <typename E>
struct SoftmaxTile {
  using A = Acc<E>;
  Geometry geometry;
  int64_t segment_rows;
  int64_t first_query, queries, first_key, keys;  // the tile's place in its segment
  int64_t padded_queries, padded_keys, padded_size;
  A* scores;
  E* p;
  A* highest;
  A* total;
  A* out;
};
// A maximum that is passed by less than this stays: larger exponentials are as exact as those up to
// 1, and what was summed so far need not be multiplied again. Only the digits of a log-sum-exp
// become fewer, which tiles of bf16 notice least.
template <typename E>
constexpr float kSlack = std::is_same_v<E, bf16> ? 24.0f : 8.0f;

// Queries of f32 and f64 are multiplied with the scale as they are packed: a score then is the same
// number wherever it is compared, however large it is. Rounding those of bf16 once more would cost
// them digits.
template <typename E>
constexpr bool kScaledQueries = !std::is_same_v<E, bf16>;

// The form of the backward: whether its scores lie as queries by keys. Queries and dout then are
// packed once each, for A and B operands alike, and what the other operands take to turn is done
// once for a tile of keys. Products of bf16 multiply pairs of rows of p and ds, which are summed
// over queries, so these lie as keys by queries.
template <typename E>
constexpr bool kQueriesByKeys = !std::is_same_v<E, bf16>;

// The factor of packed queries; scores then have no scale of their own.
template <typename E>
double take_query_scale(Geometry& g) {
  return kScaledQueries<E> ? std::exchange(g.scale, 1.0) : 1.0;
}

// Backward: one key tile against one query tile.
//   p = exp(s - lse)
//   ds = p * (dp - delta) * scale
// (r,k) where kQueriesByKeys, in the place of scores and dp. Of bf16 (k,r), A operands over queries
// (p, ds) and a B operand over keys (ds_right). Where kScaledQueries, the geometry's scale is 1.
template <typename E>
struct GradTile {
  using A = Acc<E>;
  Geometry geometry;
  int64_t segment_rows;
  int64_t first_query, queries, first_key, keys;
  int64_t padded_queries, padded_keys;
  A* scores;
  A* dp;
  const A* lse;    // (r)
  const A* delta;  // (r)
  E* p;
  E* ds;
  E* ds_right;
  int64_t p_stride, right_stride;  // of bf16: between keys of p and ds, and of ds_right
};

// Loops over tiles in the instructions of a processor.
//
// Those of rows and columns write a whole padded tile, (r, d) = (padded rows, padded size), zeros
// beyond the source:
//   rows_left        [r][d]  A operand of a product over d
//   rows_right       B operand of a product over rows: k = r, n = d
//   columns_left     [d][r]  A operand of a product over rows
//   columns_right    B operand of a product over d: k = d, n = r
template <typename T, typename E>
struct AttentionCore {
  using A = Acc<E>;
  using Pack = void (*)(const Source<T>& source, E* out, int64_t r, int64_t d);

  Pack rows_left, rows_right, columns_left, columns_right;
  // sums (rows, ld) stored as rows of T, `stride` elements apart
  void (*unpack_rows)(const A* sums, int64_t ld, T* out, int64_t stride, int64_t rows,
                      int64_t size);
  // sums (size, ld): row i of out is column i, times its factor (null: 1)
  void (*unpack_columns)(const A* sums, int64_t ld, const A* factors, T* out, int64_t stride,
                         int64_t rows, int64_t size);
  // out[i] = <x[i], y[i]>
  void (*row_dots)(const Source<T>& x, const Source<T>& y, A* out);
  // Both have no soft-cap, and the softmax a positive scale.
  void (*softmax)(const SoftmaxTile<E>& tile);
  void (*gradient)(const GradTile<E>& tile);
  // Queries of a tile that meet its keys together, and in the backward of bf16 also the keys: what
  // half a tile uses stays in L1 beside AMX's tiles.
  int64_t block = kTile;
  // Heads of a group whose sums of keys are made together in the backward of bf16, at most.
  int64_t heads = 1;
};
constexpr int64_t kMostHeads = 4;

// This processor's.
template <typename T, typename E>
const Core<const AttentionCore<T, E>*>& named_core_of();
template <typename T, typename E>
const AttentionCore<T, E>& core_of() {
  return *named_core_of<T, E>().run;
}

namespace x86 {
extern const AttentionCore<bf16, bf16> avx512_bf16_core, amx_core;
}  // namespace x86

// The core's loops after a pass over the tile, where there is a soft-cap, or a scale that cannot be
// left to exponents.
template <typename T, typename E>
void softmax(SoftmaxTile<E> tile);
template <typename T, typename E>
void score_gradient(GradTile<E> tile);

// The log-sum-exps of the queries, and the inverse of `total` in its place.
template <typename A>
void finish_softmax(int64_t queries, const A* highest, A* total, A* lse);

template <typename E>
void scale_packed(E* values, int64_t count, double factor);

// Memory for a tile that is computed from `sums` element by element: their own where the types are
// the same, which leaves more of the first-level cache to the products.
template <typename E>
E* in_place_or_taken(Arena& arena, Acc<E>* sums, int64_t count) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    return sums;
  } else {
    return arena.take<E>(count);
  }
}

// body<T, E>() for a storage type and the type its products run in.
template <typename Body>
void dispatch_tiles(int32_t dtype, const Body& body) {
  if (dtype == BALORA_F64) return body.template operator()<double, double>();
  if (dtype == BALORA_F32) return body.template operator()<float, float>();
  if (dtype == BALORA_F16) return body.template operator()<f16, float>();
  if (tile_gemm_has_bf16()) return body.template operator()<bf16, bf16>();
  return body.template operator()<bf16, float>();
}

}  // namespace balora::attention
