// Low-rank parts as one more segment of k in the sum of their linear (linear_tiles.h).
//
// A part alone: with u = u_hi + u_lo and b = b_hi + b_lo (16 bits each in pairs of bf16) it is
// u_hi b_hi + u_lo b_hi + u_hi b_lo, three times R; what is left out is below 2^-16 of it.
//
// A pair is two times R: here each value is one bf16, and what is lost is 2^-9 of the change, not
// of the factors. A part that is a change as it stands is one time R, u and b rounded once; its u
// is still made of both halves of A, which does not begin small and must not lose its steps.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/linear/low_rank_updates.h"
#include "kernels/cpu/products/tiles.h"

namespace balora {

// The k columns that updates take in a sum.
class KSegment {
 public:
  void add(const LowRankUpdate& update) {
    places_.push_back({update, used_});
    used_ += blocks(update) * update.rank();
  }
  // Elements of the A operand (rows up to a panel, k) and of the B operand, packed.
  int64_t a_size(int64_t m) const { return round_up(m, kPanelRows) * k(); }
  int64_t b_size(int64_t n) const { return tiles_size(k(), n); }
  int64_t k() const { return round_up(used_, kTileK); }

  // Packs B's rows of n from one side of the updates.
  void pack_rows(Context* ctx, bf16* to, int64_t n, Side side, bool scaled) const;
  // Takes the operands: B packed, and memory for A, of which the columns that no update fills are
  // cleared: they meet zeros, but must not be NaN.
  void use(Context* ctx, bf16* a, const bf16* b, int64_t m);
  TileTerm term() const {
    return {.a = a_, .lda = k(), .k = k(), .tiles = b_, .padded_rows = true, .used = used_};
  }

  struct Place {
    LowRankUpdate update;
    int64_t first;
  };
  std::span<const Place> places() const { return places_; }
  // The projection of an update by its packed columns (null: set later), and where it is written
  // to: u (f32) unless that is null, and the A operand unless use() was not called.
  TileFactor factor(const Place& place, float scale, float* u, const bf16* tiles = nullptr) const;

 private:
  // Times R that an update takes: as many as FactorForm says.
  static int64_t blocks(const LowRankUpdate& update) {
    if (update.has_start()) return 2;
    return update.is_change() ? 1 : 3;
  }

  std::vector<Place> places_;
  int64_t used_ = 0;
  bf16* a_ = nullptr;
  const bf16* b_ = nullptr;
};

// How many columns an update takes in a projection.
inline int64_t projection_columns(const LowRankUpdate& update) {
  return 2 * round_up(update.rank(), kRankTile);
}
// The columns of a projection on one side of an update (TileProjection).
void add_columns(const LowRankUpdate& update, Side side, std::vector<FactorLine>& columns);

}  // namespace balora
