// Layout and type conversions.
#include "engine/launch.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

Tensor contiguous(const Tensor& x) {
  if (x.is_contiguous()) return x;
  throw UnsupportedError("contiguous: strided copies are not available");
}

Tensor cast(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  const Tensor y = Tensor::empty(x.engine(), x.shape(), dtype);
  launch("cast", {contiguous(x.detach())}, {y},
         [](Launch& l) { return l.kernels->accumulate(l.ctx, l.in(0), l.out(0), 0.0); });
  record("cast", {x}, {y}, [from = x.dtype()](std::span<const Tensor> dy, GradSink& sink) {
    sink.add(0, cast(dy[0], from));
  });
  return y;
}

Tensor full(Engine& engine, const Shape& shape, double value, DType dtype) {
  std::vector<double> values(static_cast<size_t>(shape.numel()), value);
  return cast(upload(engine, shape, DType::kF64, values.data()), dtype);
}

}  // namespace balora
