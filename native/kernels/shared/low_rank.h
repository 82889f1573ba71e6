// The products that low-rank parts of a linear add.
#pragma once
#include <span>
#include <vector>

#include "kernels/operands/linear.h"

namespace balora {

// A product scale * B A of a part: its own factors, or those of its start, which is subtracted and
// has neither u nor gradients to write.
struct LowRankProduct {
  const View *a, *b;
  double scale;
  const View *u = nullptr, *da = nullptr, *db = nullptr;  // null: not wanted
};

inline std::vector<LowRankProduct> products_of(std::span<const balora_low_rank> parts) {
  std::vector<LowRankProduct> products;
  for (const balora_low_rank& part : parts) {
    products.push_back(
        {.a = part.a, .b = part.b, .scale = part.scale, .u = part.u, .da = part.da, .db = part.db});
    if (!part.start_a) continue;
    products.push_back({.a = part.start_a, .b = part.start_b, .scale = -part.scale});
  }
  return products;
}

}  // namespace balora
