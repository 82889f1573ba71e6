// Products of attention with relative positions: left operands that are computed, and the rows of
// the position tables that a tile meets. E is the type that products run in, A = Acc<E> that of
// their sums and of all that is computed from them.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kernels/cpu/attention/attention_tiles.h"

namespace balora::relative {

// Rows [first, first + count) of the position tables; both are multiples of kTileUnit, so that they
// are columns of a product as well.
struct Positions {
  int64_t first, count;
};

// The rows that `count` consecutive relative positions meet, at least one. Buckets of the distance
// rise or fall, so that a tile meets a part of the tables, and short segments a small one.
inline Positions positions_met(const int32_t* index, int64_t count) {
  const auto [low, high] = std::minmax_element(index, index + count);
  const int64_t first = *low / kTileUnit * kTileUnit;
  return {first, tile_padded(*high + 1) - first};
}

// A tile (m,n) of sums as the left operand of products, as it lies and turned. Products of bf16
// take a rounded copy, and a turned one of that.
template <typename E>
class LeftTile {
 public:
  using A = Acc<E>;

  // At most `m` rows and `n` columns.
  LeftTile(Arena& arena, int64_t m, int64_t n) {
    if constexpr (kCopied) rows_ = arena.take<E>(m * n), turned_ = arena.take<E>(m * n);
  }

  // x (m,n), rows ld apart and aligned to 64 bytes, which stays as it is while it is multiplied. m
  // and n are multiples of kTileUnit.
  void take(const A* x, int64_t ld, int64_t m, int64_t n) {
    x_ = x, ld_ = ld, m_ = m, n_ = n;
    if constexpr (kCopied) attention::core_of<E, E>().unpack_rows(x, ld, rows_, n, m, n);
  }

  // c (m,d) = x b, or += with accumulate; b (n,d), a B operand
  void multiply(const E* b, int64_t d, A* c, bool accumulate) const {
    if constexpr (kCopied) {
      tile_gemm({m_, d, n_}, rows_, n_, b, c, d, accumulate);
    } else {
      tile_gemm({m_, d, n_}, x_, ld_, b, c, d, accumulate);
    }
  }

  // c (n,d) += x^T b; b (m,d), a B operand
  void multiply_turned(const E* b, int64_t d, A* c) const {
    if constexpr (kCopied) {
      const attention::Source<E> rows{rows_, n_, m_, n_};
      attention::core_of<E, E>().columns_left(rows, turned_, m_, n_);
      tile_gemm({n_, d, m_}, turned_, m_, b, c, d, true);
    } else {
      tile_gemm_columns({n_, d, m_}, x_, ld_, b, d, c, d, true);
    }
  }

 private:
  static constexpr bool kCopied = !std::is_same_v<E, A>;

  const A* x_ = nullptr;
  int64_t ld_ = 0, m_ = 0, n_ = 0;
  E *rows_ = nullptr, *turned_ = nullptr;
};

}  // namespace balora::relative
