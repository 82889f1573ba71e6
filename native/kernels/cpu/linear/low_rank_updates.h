// The low-rank parts of a linear as its kernels compute them: alone, or with the start of the pair,
// s (B A - B0 A0), by what has changed since:
//
//   s (dB A + B0 dA) forward, s (B dA + dB A0) backward, with dA = A - A0 and dB = B - B0
//
// Before the first step it is exactly zero, and no large terms cancel. A part that says so is such
// a change as it stands (LoRA).
// docs/decisions/pissa-pairs-by-their-change.md
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"

namespace balora {

// A factor of a part.
enum class Side { kA, kB };

// scale * B A, or the change of a pair since its start.
struct LowRankUpdate {
  const View *a = nullptr, *b = nullptr;
  const View *start_a = nullptr, *start_b = nullptr;  // null: not computed by its change
  double scale = 0;
  int32_t form = BALORA_LOW_RANK_EXACT;
  const View *u = nullptr, *da = nullptr, *db = nullptr;  // null: not wanted
  float* du = nullptr;                                    // where backward on tiles keeps dU for da

  const View& factor(Side side) const { return side == Side::kA ? *a : *b; }
  const View* start(Side side) const { return side == Side::kA ? start_a : start_b; }
  int64_t rank() const { return a->shape[0]; }
  bool has_start() const { return start_a != nullptr; }
  // Whether 2^-9 of it may be lost: products then take one bf16 a value.
  bool is_change() const { return form != BALORA_LOW_RANK_EXACT; }
};

// The parts of a linear.
inline std::vector<LowRankUpdate> low_rank_updates_of(const LinearOperands& linear) {
  std::vector<LowRankUpdate> updates;
  for (const LowRankOperands& part : parts_of(linear)) {
    if (part.a->shape[0] == 0) continue;
    updates.push_back({.a = part.a,
                       .b = part.b,
                       .start_a = part.start_a,
                       .start_b = part.start_b,
                       .scale = part.scale,
                       .form = part.form,
                       .u = part.u,
                       .da = part.da,
                       .db = part.db});
  }
  return updates;
}

}  // namespace balora
