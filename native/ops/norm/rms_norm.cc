// RMSNorm: y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), over the last dimension; and
// the same of x + residual, which it returns too. Kept for backward: what was normalised, weight
// and the reciprocal root of each row. See kernels/cpu/norm/norm.cc for the rounding rules.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

struct Options {
  double eps, weight_offset;
  int32_t cast_before_weight;
};

void check(const char* op, const Tensor& x, const Tensor& weight, double eps) {
  check_float(op, "x", x);
  if (x.ndim() < 1) throw ArgumentError(concat(op, ": x needs at least one dimension"));
  check_shape(op, "weight", weight, {x.dim(-1)}, "(C)");
  check_dtype(op, "weight", weight, x.dtype());
  if (!(eps >= 0)) throw ArgumentError(concat(op, ": eps must be >= 0, got ", eps));
}

// Enqueues the gradient of the norm of `x` (N,C); dsum, when defined, joins dx.
struct Gradients {
  Tensor dx, dweight;
};
Gradients launch_backward(const Tensor& dy, const Tensor& dsum, const Tensor& x,
                          const Tensor& weight, const Tensor& rstd, bool wants_x, bool wants_weight,
                          const Options& options) {
  Gradients out;
  if (wants_x) out.dx = empty_like(x);
  if (wants_weight) {
    out.dweight = Tensor::empty(x.engine(), weight.shape(), accumulator_dtype(x.dtype()));
  }
  using O = balora_rms_norm_backward;
  launch<O>(
      "rms_norm_backward", &KernelTable::rms_norm_backward,
      {{&O::dy, dy}, {&O::dsum, dsum}, {&O::x, x}, {&O::weight, weight}, {&O::rstd, rstd}},
      {{&O::dx, out.dx}, {&O::dweight, out.dweight}},
      {.weight_offset = options.weight_offset, .cast_before_weight = options.cast_before_weight});
  return out;
}

// Enqueues y (N,C) and rstd (N) of x (N,C).
void launch_forward(const Tensor& x, const Tensor& weight, const Tensor& y, const Tensor& rstd,
                    const Options& options) {
  using O = balora_rms_norm_forward;
  launch<O>("rms_norm", &KernelTable::rms_norm_forward, {{&O::x, x}, {&O::weight, weight}},
            {{&O::y, y}, {&O::rstd, rstd}},
            {.eps = options.eps,
             .weight_offset = options.weight_offset,
             .cast_before_weight = options.cast_before_weight});
}

// y is the norm of `x` (N,C), which is kept.
void offer_norm(const Tensor& y, const Tensor& x, const Tensor& weight, const Options& options) {
  offer_recipe(y, [x = Saved::activation(x, grad_wanted({y})), weight = Saved(weight), options] {
    const Tensor rows = x.get();
    Tensor again = empty_like(rows);
    const Tensor rstd =
        Tensor::empty(rows.engine(), {rows.dim(0)}, accumulator_dtype(rows.dtype()));
    launch_forward(rows, weight.get(), again, rstd, options);
    return again;
  });
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double weight_offset,
                bool cast_before_weight) {
  check("rms_norm", x, weight, eps);
  const Options options{eps, weight_offset, cast_before_weight};
  const Tensor x2 = contiguous_rows("rms_norm", "x", x);
  const Tensor w = contiguous(weight.detach());
  Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  const Tensor rstd = Tensor::empty(x.engine(), {x2.dim(0)}, accumulator_dtype(x.dtype()));
  launch_forward(x2, w, y.view(x2.shape()), rstd, options);

  record("rms_norm", {x, weight}, {y},
         [x2 = Saved::activation(x2, grad_wanted({x, weight})), w = Saved(w), rstd = Saved(rstd),
          shape = x.shape(), options](std::span<const Tensor> dy, GradSink& sink) {
           const Tensor rows = x2.get();
           const Gradients g =
               launch_backward(contiguous(dy[0]).view(rows.shape()), Tensor(), rows, w.get(),
                               rstd.get(), sink.wants(0), sink.wants(1), options);
           if (g.dx.defined()) sink.add(0, g.dx.view(shape));
           sink.add(1, g.dweight);
         });
  offer_norm(y, x2, w, options);
  return y;
}

std::tuple<Tensor, Tensor> rms_norm_add(const Tensor& x, const Tensor& residual,
                                        const Tensor& weight, double eps, double weight_offset,
                                        bool cast_before_weight) {
  check("rms_norm_add", x, weight, eps);
  check_shape("rms_norm_add", "residual", residual, x.shape(), "the shape of x");
  check_dtype("rms_norm_add", "residual", residual, x.dtype());
  const Options options{eps, weight_offset, cast_before_weight};
  const Tensor x2 = contiguous_rows("rms_norm_add", "x", x);
  const Tensor residual2 = contiguous_rows("rms_norm_add", "residual", residual);
  const Tensor w = contiguous(weight.detach());
  const Tensor sum = Tensor::empty(x.engine(), x.shape(), x.dtype());
  const Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  const Tensor rstd = Tensor::empty(x.engine(), {x2.dim(0)}, accumulator_dtype(x.dtype()));
  const Tensor sum2 = sum.view(x2.shape());
  using O = balora_rms_norm_add_forward;
  launch<O>("rms_norm_add", &KernelTable::rms_norm_add_forward,
            {{&O::x, x2}, {&O::residual, residual2}, {&O::weight, w}},
            {{&O::sum, sum2}, {&O::y, y.view(x2.shape())}, {&O::rstd, rstd}},
            {.eps = eps, .weight_offset = weight_offset, .cast_before_weight = cast_before_weight});

  record(
      "rms_norm_add", {x, residual, weight}, {sum, y},
      [sum2 = Saved::activation(sum2, grad_wanted({x, residual, weight})), w = Saved(w),
       rstd = Saved(rstd), shape = x.shape(), options](std::span<const Tensor> dy, GradSink& sink) {
        const Tensor rows = sum2.get();
        const bool wants_sum = sink.wants(0) || sink.wants(1);
        Tensor dsum = dy[0];
        if (dy[1].defined()) {
          const Tensor beside = dsum.defined() ? contiguous(dsum).view(rows.shape()) : Tensor();
          const Gradients g =
              launch_backward(contiguous(dy[1]).view(rows.shape()), beside, rows, w.get(),
                              rstd.get(), wants_sum, sink.wants(2), options);
          sink.add(2, g.dweight);
          if (wants_sum) dsum = g.dx.view(shape);
        }
        sink.add(0, dsum);
        sink.add(1, dsum);
      });
  offer_norm(y, sum2, w, options);
  return {sum, y};
}

}  // namespace balora
