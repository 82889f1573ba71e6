// The low-rank parts of a linear as its kernels take them: alone, or as a pair of neighbours
// s B A - s B0 A0, as PiSSA trains it, which is written by what has changed:
//
//   s (dB A + B0 dA) forward, s (B dA + dB A0) backward, with dA = A - A0 and dB = B - B0
//
// Before the first step it is exactly zero, and no large terms cancel. A part may say that it
// is such a change as it stands (LoRA).
// docs/decisions/pissa-pairs-by-their-change.md
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernel_table.h"

namespace balora {

// A part alone, or with its neighbour `start` less which it is meant.
struct Piece {
  const LowRankOperands* part;
  const LowRankOperands* start = nullptr;

  int64_t rank() const { return part->a->shape[0]; }
  // What 2^-9 of may be lost: products take one bf16 a value.
  bool is_change() const { return start || part->is_change; }
};

// The parts of one linear, those that form pairs together: of one rank, the second with the first
// one's scale negated, unwanted gradients, and factors the first is still close to.
std::vector<Piece> pieces_of(Context* ctx, std::span<const LowRankOperands> parts, size_t linear);

}  // namespace balora
