// y = x * scale + bias, a factor and an offset a column: x (...,C), scale (C) in the accumulator
// type, bias (C) of x's type. With DoRA scale is the magnitude over the norm of the weight's rows.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {

Tensor column_scale(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& bias) {
  constexpr const char* kOp = "column_scale";
  const Tensor rows = contiguous_rows(kOp, "x", x);
  const DType wide = accumulator_dtype(x.dtype());
  check_shape(kOp, "scale", scale, {x.dim(-1)}, "(C)");
  check_dtype(kOp, "scale", scale, wide);
  if (bias) {
    check_shape(kOp, "bias", *bias, {x.dim(-1)}, "(C)");
    check_dtype(kOp, "bias", *bias, x.dtype());
  }
  const Tensor factor = contiguous(scale.detach());
  const Tensor offset = bias ? contiguous(bias->detach()) : Tensor();
  Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  using O = balora_column_scale_forward;
  launch<O>(kOp, &KernelTable::column_scale_forward,
            {{&O::x, rows}, {&O::scale, factor}, {&O::bias, offset}},
            {{&O::y, y.view(rows.shape())}});

  const bool keeps_x = grad_wanted({scale});
  record(kOp, {x, scale, bias.value_or(Tensor())}, {y},
         [rows = keeps_x ? Saved(rows) : Saved(), factor = Saved(factor), shape = x.shape(),
          flat = rows.shape(), wide](std::span<const Tensor> dy, GradSink& sink) {
           const Tensor g = contiguous(dy[0]).view(flat);
           const Shape columns = {flat[1]};
           const auto made = [&](size_t i, const Shape& s, DType dtype) {
             return sink.wants(i) ? Tensor::empty(g.engine(), s, dtype) : Tensor();
           };
           const Tensor dx = made(0, flat, g.dtype());
           const Tensor dscale = made(1, columns, wide), dbias = made(2, columns, wide);
           using O = balora_column_scale_backward;
           launch<O>("column_scale_backward", &KernelTable::column_scale_backward,
                     {{&O::dy, g},
                      {&O::x, rows.defined() ? rows.get() : Tensor()},
                      {&O::scale, factor.get()}},
                     {{&O::dx, dx}, {&O::dscale, dscale}, {&O::dbias, dbias}});
           if (dx.defined()) sink.add(0, dx.view(shape));
           sink.add(1, dscale);
           sink.add(2, dbias);
         });
  return y;
}

}  // namespace balora
