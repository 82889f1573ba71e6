// Conversions of layout, type and place: contiguous (a copy where the strides ask for one), cast,
// and a copy on another device.
#include "engine/launch.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

Tensor copied(const char* op, const Tensor& x, DType dtype) {
  Tensor y = Tensor::empty(x.engine(), x.shape(), dtype);
  using O = balora_copy;
  launch<O>(op, &KernelTable::copy, {{&O::source, x.as_encoded()}}, {{&O::destination, y}});
  return y;
}

}  // namespace

Tensor contiguous(const Tensor& x) {
  if (x.is_contiguous()) return x;
  Tensor y = copied("contiguous", x, x.dtype());
  record(
      "contiguous", {x}, {y},
      [](std::span<const Tensor> dy, GradSink& sink) { sink.add(0, dy[0]); }, Gradient::kAnyFloat);
  return y;
}

Tensor cast(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype && !x.encoding()) return x;
  if (x.encoding() && !is_float(dtype)) {
    throw UnsupportedError(concat("cast: a weight in blocks (", x.encoding()->name,
                                  ") has float values, not ", dtype_name(dtype)));
  }
  Tensor y = copied("cast", x, dtype);
  if (!is_float(dtype)) return y;  // a whole number does not move with x
  record(
      "cast", {x}, {y},
      [from = x.dtype()](std::span<const Tensor> dy, GradSink& sink) {
        sink.add(0, cast(dy[0], from));
      },
      Gradient::kAnyFloat);
  return y;
}

Tensor decoded(const Tensor& x) {
  return cast(x.detach(), x.dtype());
}

Tensor to_device(const Tensor& x, Engine& engine) {
  if (&x.engine() == &engine) return x;
  Tensor y = transfer(contiguous(x.detach()), engine);
  record(
      "to", {x}, {y},
      [home = &x.engine()](std::span<const Tensor> dy, GradSink& sink) {
        sink.add(0, to_device(dy[0], *home));
      },
      Gradient::kAnyFloat);
  return y;
}

}  // namespace balora
