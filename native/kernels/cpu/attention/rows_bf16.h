// Attention of a tile of queries and a tile of keys in bf16, whose scores lie as queries by keys:
// queries and the gradient of the output are multiplied as they lie in memory, and nothing that is
// done once for a query is turned. Only where products of bf16 leave their sums in registers
// (AVX512-BF16 without AMX), and without soft-cap.
//
// Only multiplications compete with the products on that processor, of its vector instructions. So
// exponentials take their polynomials from a table, and run between the products of the next block.
#pragma once
#include "kernels/cpu/attention/attention_band.h"
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/products/tiles_target.h"

#ifdef BALORA_TILES
namespace balora::attention::rows {

// The rows of a source, asked for one by one in the second-level cache: the products need all of
// the first. They lie apart, which no hardware prefetcher follows. After the last, that one again:
// a branch among products costs more than what it saves.
class Cursor {
 public:
  // Nothing to ask for but `near`, which is in the cache.
  void rest(const void* near) { next_ = last_ = static_cast<const char*>(near), stride_ = 0; }
  void start(const Source<bf16>& rows) {
    stride_ = rows.stride * static_cast<int64_t>(sizeof(bf16));
    next_ = reinterpret_cast<const char*>(rows.data);
    last_ = next_ + (rows.rows - 1) * stride_;
  }
  // Two lines, all of a head's row of 64 values; of longer rows the hardware fetches the others.
  BALORA_INLINE void ask() {
    __builtin_prefetch(next_, 0, 2);
    __builtin_prefetch(next_ + 64, 0, 2);
    const char* following = next_ + stride_;
    next_ = following < last_ ? following : last_;
  }

 private:
  const char *next_, *last_;
  int64_t stride_;
};

// The rows that are asked for during a tile's products, of two sources at each of four places.
struct Ahead {
  Cursor scores[2], gradients[2], sums[2], keys[2];
};

// Rows of queries, or of a gradient, to be multiplied: kTile of them can be read, of which those of
// the tile are the first.
struct Operand {
  const bf16* data;
  int64_t stride;
};

// A tile of queries in the forward.
struct SoftmaxRows {
  Operand q;
  int64_t rows, size;  // queries, and D, padded
  double scale;
  float *highest, *base_2;  // (r): maxima so far, and in base 2
  float *total, *passed;    // (r,16): sums of 16 lanes each; those of a tile that may not hold
  bf16* p;                  // (r,n)
  float* out;               // (r,d) in panels
};

// Before the first tile of keys, when nothing is seen yet.
void start_softmax(const SoftmaxRows& t);
// p, and its sums in `total`, of a tile of keys that all queries see; keys (d/2,kTile,2) are a B
// operand over d, with zeros up to kTile of them. False, with nothing but p and `passed` changed,
// where a query has no maximum yet, one that may have to rise by more than kSlack, or one too large
// to be scaled in base 2.
bool whole_softmax(SoftmaxRows& t, const bf16* keys, Ahead* ahead);
// The same of any tile, n of whose keys exist. is_first: of those that the queries meet.
void masked_softmax(const SoftmaxRows& t, const bf16* keys, const Band& band, int64_t n,
                    bool is_first);
// Sums of the lanes of `total`, one for each query.
void sum_lanes(const float* total, float* sums);

// A tile of queries in the backward.
struct GradientRows {
  Operand q, dout;
  int64_t rows, size;
  double scale;
  const float *lse, *delta;  // (r)
  float* base_2;             // (r): what start_gradient() writes, lse in base 2
  bf16 *p, *ds;              // (r/2,n,2): A operands by columns
  bf16* ds_rows;             // (r,n)
};

// Before the first tile of keys. `lse` and `delta` have kTile elements.
void start_gradient(const GradientRows& t);
// p, and ds without the scale, of a tile that all queries see; keys and values as for the softmax.
// False, with nothing written, where a log-sum-exp is too large to be scaled in base 2.
bool whole_gradient(const GradientRows& t, const bf16* keys, const bf16* values, Ahead* ahead);
// The same of any tile, n of whose keys exist.
void masked_gradient(const GradientRows& t, const bf16* keys, const bf16* values, const Band& band,
                     int64_t n);

// Rows of bf16 that sums become, each times its factor. Without `out` there are none yet.
struct RowResult {
  bf16* out;
  int64_t stride, size;
  const float* factors;
};

// A tile of rows that becomes a B operand beside sums over queries, as pack_rows() would make it,
// and the lanes (r,16) of its dots with another's rows, if it has any. can_pack_beside() must hold
// for both.
struct ComingRows {
  Source<bf16> rows;
  bf16* packed;
  Source<bf16> others;  // of the same size, or without data
  float* lanes;
};
// Whether there are kTile rows, of whole panels.
inline bool can_pack_beside(const Source<bf16>& rows) {
  return rows.rows == kTile && rows.size % kTile == 0;
}

// Sums, and B operands over rows, lie in panels of 64 columns, of which the last may have 32: their
// rows are then a constant apart. A tile of D columns, padded, has kTile * D elements either way.
//
// sums (r,d) += p (r,n) b (n,d): sums over keys, of queries; is_first: without what they hold.
// Where `result` has an `out`, they go there instead.
void sum_over_keys(const bf16* p, const bf16* b, int64_t d, const Band& band, int64_t rows,
                   int64_t n, float* sums, bool is_first, const RowResult& result, Ahead* ahead);
// sums (n,d) += p (r,n)^T b (r,d): sums over queries, of keys. Beside those of a tile that all
// queries see, rows are asked for or packed, where they are given.
void sum_over_queries(const bf16* p, const bf16* b, int64_t d, const Band& band, int64_t rows,
                      int64_t n, float* sums, bool is_first, Cursor* ahead,
                      const ComingRows* coming);
// Rows as a B operand, with zeros up to kTile of them.
void pack_rows(const Source<bf16>& rows, int64_t d, bf16* out);
void write_rows(const float* sums, int64_t d, int64_t rows, const RowResult& result);

// The dot of each row of x with that of y; zeros up to kTile.
void row_dots(const Source<bf16>& x, const Source<bf16>& y, float* dots);

}  // namespace balora::attention::rows
#endif
