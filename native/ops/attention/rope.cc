// Rotary position embedding: x (N,H,D), tables (P,Drot/2), positions (N) i32 -> (N,H,D). The first
// Drot channels of each head are rotated, the others copied. Nothing but the tables is kept:
// backward rotates the gradient back.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

void check(const Tensor& x, const Tensor& cosine, const Tensor& sine, const Tensor& positions) {
  check_float("rope", "x", x);
  check_ndim("rope", "x (N,H,D)", x, 3);
  check_ndim("rope", "cos (P,Drot/2)", cosine, 2);
  check_shape("rope", "sin", sine, cosine.shape(), "the shape of cos");
  check_dtype("rope", "cos", cosine, accumulator_dtype(x.dtype()));
  check_dtype("rope", "sin", sine, accumulator_dtype(x.dtype()));
  check_shape("rope", "positions", positions, {x.dim(0)}, "(N)");
  check_dtype("rope", "positions", positions, DType::kI32);
  if (2 * cosine.dim(1) > x.dim(2)) {
    throw ArgumentError(concat("rope: the tables rotate ", 2 * cosine.dim(1),
                               " channels of a head, x has ", x.dim(2)));
  }
}

Tensor rotate(const Tensor& x, const Tensor& cosine, const Tensor& sine, const Tensor& positions,
              bool inverse) {
  Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  using O = balora_rope;
  launch<O>(
      "rope", &KernelTable::rope,
      {{&O::x, row_strided(x)}, {&O::cosine, cosine}, {&O::sine, sine}, {&O::positions, positions}},
      {{&O::y, y}}, {.inverse = inverse});
  return y;
}

}  // namespace

Tensor rope(const Tensor& x, const Tensor& cosine, const Tensor& sine, const Tensor& positions) {
  check(x, cosine, sine, positions);
  const Tensor c = contiguous(cosine.detach()), s = contiguous(sine.detach());
  const Tensor p = contiguous(positions.detach());
  Tensor y = rotate(x, c, s, p, false);
  record("rope", {x}, {y},
         [c = Saved(c), s = Saved(s), p = Saved(p)](std::span<const Tensor> dy, GradSink& sink) {
           sink.add(0, rotate(dy[0], c.get(), s.get(), p.get(), true));
         });
  return y;
}

}  // namespace balora
