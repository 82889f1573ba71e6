// LayerNorm: y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension; weight and
// bias may be absent. Kept for backward: x, weight, and each row's mean and reciprocal deviation.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

// The (C) operand off the tape, or undefined.
Tensor channel_operand(const char* name, const std::optional<Tensor>& t, const Tensor& x) {
  if (!t) return Tensor();
  check_shape("layer_norm", name, *t, {x.dim(-1)}, "(C)");
  check_dtype("layer_norm", name, *t, x.dtype());
  return contiguous(t->detach());
}

}  // namespace

Tensor layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, double eps) {
  const Tensor x2 = contiguous_rows("layer_norm", "x", x);
  const Tensor w = channel_operand("weight", weight, x);
  const Tensor b = channel_operand("bias", bias, x);
  if (!(eps >= 0)) throw ArgumentError(concat("layer_norm: eps must be >= 0, got ", eps));

  const DType wide = accumulator_dtype(x.dtype());
  Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  const Tensor mean = Tensor::empty(x.engine(), {x2.dim(0)}, wide);
  const Tensor rstd = Tensor::empty(x.engine(), {x2.dim(0)}, wide);
  using O = balora_layer_norm_forward;
  launch<O>("layer_norm", &KernelTable::layer_norm_forward,
            {{&O::x, x2}, {&O::weight, w}, {&O::bias, b}},
            {{&O::y, y.view(x2.shape())}, {&O::mean, mean}, {&O::rstd, rstd}}, {.eps = eps});

  const Tensor given[] = {x, weight.value_or(Tensor()), bias.value_or(Tensor())};
  record(
      "layer_norm", given, std::span(&y, 1),
      [x2 = Saved::activation(x2, grad_wanted(given)), w = Saved(w), mean = Saved(mean),
       rstd = Saved(rstd), shape = x.shape(), wide](std::span<const Tensor> dy, GradSink& sink) {
        const Tensor rows = x2.get();
        const Shape channels{rows.dim(1)};
        const Tensor dx = sink.wants(0) ? empty_like(rows) : Tensor();
        const Tensor dw = sink.wants(1) ? Tensor::empty(rows.engine(), channels, wide) : Tensor();
        const Tensor db = sink.wants(2) ? Tensor::empty(rows.engine(), channels, wide) : Tensor();
        using O = balora_layer_norm_backward;
        launch<O>("layer_norm_backward", &KernelTable::layer_norm_backward,
                  {{&O::dy, contiguous(dy[0]).view(rows.shape())},
                   {&O::x, rows},
                   {&O::weight, w.get()},
                   {&O::mean, mean.get()},
                   {&O::rstd, rstd.get()}},
                  {{&O::dx, dx}, {&O::dweight, dw}, {&O::dbias, db}});
        if (dx.defined()) sink.add(0, dx.view(shape));
        sink.add(1, dw);
        sink.add(2, db);
      });
  return y;
}

}  // namespace balora
