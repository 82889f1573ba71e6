// RMSNorm: y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), over the last dimension.
// Kept for backward: x, weight and the reciprocal root of each row. See kernels/cpu/norm.cc for the rounding rules.
#include "engine/launch.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double weight_offset,
                bool cast_before_weight) {
  check_float("rms_norm", "x", x);
  if (x.ndim() < 1) throw ArgumentError("rms_norm: x needs at least one dimension");
  const int64_t channels = x.dim(-1);
  check_shape("rms_norm", "weight", weight, {channels}, "(C)");
  check_dtype("rms_norm", "weight", weight, x.dtype());
  if (!(eps >= 0)) throw ArgumentError(concat("rms_norm: eps must be >= 0, got ", eps));

  const int64_t rows = channels > 0 ? x.numel() / channels : 0;
  const Tensor x2 = contiguous(x.detach()).view({rows, channels});
  const Tensor w = contiguous(weight.detach());
  const Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  const Tensor rstd = Tensor::empty(x.engine(), {rows}, accumulator_dtype(x.dtype()));
  launch("rms_norm", {x2, w}, {y.view({rows, channels}), rstd}, [=](Launch& l) {
    return l.kernels->rms_norm_forward(l.ctx, l.in(0), l.in(1), l.out(0), l.out(1), eps,
                                       weight_offset, cast_before_weight);
  });

  record("rms_norm", {x, weight}, {y},
         [x2 = Saved(x2), w = Saved(w), rstd = Saved(rstd), shape = x.shape(), weight_offset,
          cast_before_weight](std::span<const Tensor> dy, GradSink& sink) {
           const Tensor x2_ = x2.get(), w_ = w.get();
           const Tensor g = contiguous(dy[0]).view(x2_.shape());
           const Tensor dx = sink.wants(0) ? empty_like(x2_) : Tensor();
           const Tensor dw = sink.wants(1) ? Tensor::empty(x2_.engine(), w_.shape(),
                                                           accumulator_dtype(w_.dtype()))
                                           : Tensor();
           launch("rms_norm_backward", {g, x2_, w_, rstd.get()}, {dx, dw}, [=](Launch& l) {
             return l.kernels->rms_norm_backward(l.ctx, l.in(0), nullptr, l.in(1), l.in(2),
                                                 l.in(3), l.out(0), l.out(1), weight_offset,
                                                 cast_before_weight);
           });
           if (dx.defined()) sink.add(0, dx.view(shape));
           sink.add(1, dw);
         });
  return y;
}

}  // namespace balora
