// Inverted dropout (Srivastava et al., 2014): y = 0 with probability p, else x / (1 - p). The mask
// is a function of (seed, stream, index): backward draws it again, nothing is kept.
#include "engine/launch.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

Tensor dropped(const Tensor& x, double p, uint64_t seed, uint64_t stream) {
  Tensor y = empty_like(x);
  using O = balora_dropout;
  launch<O>("dropout", &KernelTable::dropout, {{&O::x, contiguous(x.detach())}}, {{&O::y, y}},
            {.seed = seed, .stream = stream, .p = p});
  return y;
}

}  // namespace

Tensor dropout(const Tensor& x, double p, int64_t seed, int64_t stream) {
  check_float("dropout", "x", x);
  if (!(p >= 0 && p <= 1)) throw ArgumentError(concat("dropout: p must be in [0,1], got ", p));
  if (seed < 0 || stream < 0) throw ArgumentError("dropout: seed and stream must be >= 0");
  const auto s = static_cast<uint64_t>(seed), t = static_cast<uint64_t>(stream);
  Tensor y = dropped(x, p, s, t);
  record("dropout", {x}, {y}, [p, s, t](std::span<const Tensor> dy, GradSink& sink) {
    sink.add(0, dropped(dy[0], p, s, t));
  });
  return y;
}

}  // namespace balora
