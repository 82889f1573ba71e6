#include "ops/linear/linear_group.h"

#include <cmath>

#include "tape/tape.h"

namespace balora {

void check_part(const char* op, const PartNames& names, const LowRankPart& part,
                const Tensor& weight) {
  const auto& [a, b, frozen, scale, is_change] = part;
  const int64_t outs = weight.dim(0), ins = weight.dim(1);
  check_float(op, names.of("a").c_str(), a);
  check_ndim(op, names.of("a").c_str(), a, 2);
  const int64_t rank = a.dim(0);
  check_shape(op, names.of("a").c_str(), a, {rank, ins}, "(R,I)");
  check_shape(op, names.of("b").c_str(), b, {outs, rank}, "(O,R)");
  if (!std::isfinite(scale)) {
    throw ArgumentError(concat(op, ": the scale of a low-rank part must be finite, got ", scale));
  }
  if (!frozen) return;
  check_shape(op, names.of("frozen.a").c_str(), frozen->a, {rank, ins}, "(R,I)");
  check_shape(op, names.of("frozen.b").c_str(), frozen->b, {outs, rank}, "(O,R)");
  for (const auto& [name, factor] : {std::pair{"frozen.a", frozen->a}, {"frozen.b", frozen->b}}) {
    if (!grad_wanted({factor})) continue;
    throw ArgumentError(concat(op, ": ", names.of(name),
                               " wants a gradient, but the start of a part is never given one; "
                               "detach it, or add it as a part of its own"));
  }
}

}  // namespace balora
