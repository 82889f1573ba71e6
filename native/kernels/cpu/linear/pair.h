// The low-rank parts of linears as their products take them. A part adds s B A, or since its start
//
//   s (dB A + B0 dA) forward, s (B dA + dB A0) backward, with dA = A - A0 and dB = B - B0
//
// Before the first step that is exactly zero, and no large terms cancel
// (docs/decisions/pissa-pairs-by-their-change.md). It is a product of two matrices: x or dY is
// projected by the columns of one factor, and the result meets the rows of the other one as a
// segment of k in the sum of its linear.
//
// In tiles (bf16) an exact part is three times R: with u = u_hi + u_lo and b = b_hi + b_lo it is
// u_hi b_hi + u_lo b_hi + u_hi b_lo; what is left out is below 2^-16 of it. A part since its start
// is two times R of one bf16 a value, and a part that is a change one time R: what is lost is 2^-9
// of the change. u is still made of both halves of A, which must not lose its steps. In f32 and
// f64 nothing is rounded: two times R for a part since its start, one for others.
//
// For few rows whose results do not depend on each other, as in text generation, packed matrices
// are kept: each token asks for the same ones, and to make them takes as long as such a product.
// They stay in a slot of a factor's storage and are used while every factor that they were made of
// has the same values.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/kernel_table.h"

namespace balora {

// A factor of a part.
enum class Side { kA, kB };

inline const View& factor_of(const LowRankOperands& part, Side side) {
  return side == Side::kA ? *part.a : *part.b;
}
inline int64_t rank_of(const LowRankOperands& part) {
  return part.a->shape[0];
}
// Whether 2^-9 of it may be lost: products in tiles then take one bf16 a value.
inline bool is_change(const LowRankOperands& part) {
  return part.form != BALORA_LOW_RANK_EXACT;
}

// A matrix that is made of factors.
struct KeptForm {
  Side side;
  bool columns;    // or rows of k
  int32_t dtype;   // of PackedPairs
  int64_t extent;  // of the factors' other side

  bool operator==(const KeptForm&) const = default;
};

// Rows up to which it is worth its memory to keep what is packed.
constexpr int64_t kFewRows = 64;

// Whether a product of m rows keeps it. In training factors have new values in each step, and what
// is made of them may take more memory than the adapter: tiles have 32 columns for a rank of 2.
inline bool keeps_factors(bool by_rows, int64_t m) {
  return by_rows && m <= kFewRows;
}

// Parts whose results stand side by side as inner columns of a sum, packed for one call.
class PackedPairs {
 public:
  struct Place {
    const LowRankOperands* part;
    int64_t first;        // its columns
    int64_t linear;       // of a group
    float* du = nullptr;  // where backward in tiles keeps dU
  };
  using Places = std::span<const Place>;

  // dtype: BALORA_BF16 for tiles, else the type of the factors. `keeps`: see keeps_factors().
  PackedPairs(Context* ctx, int32_t dtype, bool keeps) : ctx_(ctx), dtype_(dtype), keeps_(keeps) {}

  // The parts of a linear must follow one another.
  void add(const LowRankOperands& part, int64_t linear = 0, float* du = nullptr);
  Places places() const { return places_; }
  Places of(int64_t linear) const;
  // Columns of some places, and of all, as a product reads them.
  int64_t width(Places places) const;
  int64_t k() const { return in_tiles() ? round_up(width(places_), kTileK) : width(places_); }

  // One factor of each part, A (R,extent) or s B (extent,R), as the rows of k that the columns
  // meet: in tiles, or else A (width,extent) and s B (extent,width).
  const void* rows(Places places, Side side, int64_t extent);
  // The same of the factors that x or dY is multiplied by; in tiles B without its s.
  const void* columns(Places places, Side side, int64_t extent);

  // In tiles, for m rows: the columns with `rows` as their B.
  TileTerm segment(int64_t m, const void* rows);
  // The projection of a part by its columns, to u in f32 unless that is null, and to the columns
  // of the segment where there is one.
  TileFactor projection(const Place& place, float scale, float* u, const void* columns) const;

 private:
  bool in_tiles() const { return dtype_ == BALORA_BF16; }
  void* take(int64_t bytes) { return memory_.emplace_back(ctx_, bytes).data(); }
  const void* matrix(Places places, const KeptForm& form);  // not in tiles
  const void* kept_or_made(Places places, const KeptForm& form, int64_t bytes,
                           const std::function<void(void*)>& make);

  Context* ctx_;
  int32_t dtype_;
  bool keeps_;
  std::vector<Place> places_;
  bf16* a_ = nullptr;  // of the segment
  std::deque<Scratch<char>> memory_;
};

}  // namespace balora
