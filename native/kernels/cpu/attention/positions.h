// Scores of relative positions (balora_relative in kernels/operands/attention.h) in the passes of
// attention: DeBERTa's products with tables by position, and T5's bias. A thread adds them to each
// block of scores, and their gradients up, head by head. Index and bias are read along a row of the
// scores, in whichever of both directions these lie.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/operands/attention.h"

namespace balora::attention {

// @throws ArgumentError for segments that do not fit the rows, each other or the relative positions
std::vector<Segment> read_segments(const Relative& r);

// A plain call's operands of those of a relative one.
template <typename O>
O plain_of(const Relative& r) {
  return {.q = r.q, .k = r.k, .v = r.v, .scale = r.scale, .causal = r.causal};
}

template <typename T, typename E>
class Positions {
 public:
  using A = Acc<E>;

  // `wanted`: null in the forward. `longest`: rows of a segment, at most.
  Positions(Arena& arena, const Geometry& g, const Relative& r, const RelativeGradients* wanted,
            int64_t longest);

  // Packs what a head needs of the tables, where that is another one.
  void take_head(int64_t head);
  // Tiles of keys come before their scores, in any order; queries before theirs, those of one block
  // of rows at a time with all keys that it meets.
  void take_keys(const Segment& segment, const Keys& keys);
  void take_queries(const Segment& segment, const Queries& queries, const TileRange& met);

  // Scores of a block become whole, but for a scale that the geometry has. Rows are ld apart.
  void add(const Block& block, A* scores, int64_t ld) const;
  // ds of a block; zeros where a key is not seen.
  void add_gradient(const Block& block, const A* ds, int64_t ld) const;

  // Makes the gradients of the queries taken, and of a tile of keys, whole. q is a B operand (r,d).
  void finish_queries(const E* q, A* dq) const;
  void finish_keys(const Segment& segment, const Keys& keys, A* dk);
  void write_head() const;

 private:
  // Rows [first, first + count) of the tables; both are multiples of kTileUnit, so that they are
  // columns of a product as well.
  struct Range {
    int64_t first, count;
  };
  // A table, and the rows of queries or keys that are multiplied with it.
  struct Table {
    Heads<T> values, gradient;  // (P,H,D)
    E *columns, *rows;          // of a head, B operands (D,P) and (P,D), or an A operand (D,P)
    A *products, *ds;           // (rows,P), products with the table and sums of ds, where they meet
    A* total;                   // (P,D), the gradient

    Table(Arena& arena, const View* of, const RelativeGradients* wanted, const View* gradient,
          int64_t rows, int64_t size);
  };
  // Both sides of a block in its table's products, or sums; null without a table.
  struct Sides {
    A *rows, *columns;
  };

  int64_t place(int64_t relative) const { return by_keys_ ? relative_ - 1 - relative : relative; }
  int64_t start_of(const Block& block) const;
  Range range_of(const Block& block) const;
  Sides sides_of(const Block& block, A* of_queries, A* of_keys) const;
  void take_rows(const Source<T>& source, const Range& met, Table& table, int64_t at);
  void finish_rows(const Table& table, int64_t at, int64_t m, const Range& met, const E* x,
                   bool turned, A* dx) const;

  const Relative& r_;
  Geometry g_;
  const RelativeGradients* wanted_;
  bool by_keys_;  // whether scores lie as keys by queries
  int64_t relative_, p_, d_;
  Table k_, q_;  // position_k, by queries, and position_q, by keys
  int32_t* index_;
  A *bias_, *dbias_;
  E *packed_, *rounded_, *turned_;
  int64_t head_ = -1, first_query_ = 0, queries_ = 0;
  Range met_{};  // of the queries
};

// Queries and keys of a block: read along one side, written along the other.
constexpr int64_t kPositionBlock = 16;

// A block of scores. Row i and column j meet at row index[j - i] of the position tables. Products
// with these lie in a row of memory for each row, or each column, of the block, `stride` apart,
// which is at least kPositionBlock; what was not met is not read.
struct PositionTile {
  const int32_t* index;
  int64_t rows, columns;
  int64_t stride;
};
// Exchanges of blocks of kPositionBlock rows and columns, or less, in a processor's instructions:
// scores are added to from of_side, or ds is added up in it.
template <typename A>
struct PositionCore {
  using Add = void (*)(const PositionTile& block, const A* of_side, A* scores, int64_t ld);
  using Sum = void (*)(const PositionTile& block, const A* ds, int64_t ld, A* of_side);

  Add add_of_rows, add_of_columns;
  Sum sum_of_rows, sum_of_columns;
};

namespace x86 {
// For whole blocks.
extern const PositionCore<float> avx512_positions;
}  // namespace x86

}  // namespace balora::attention
