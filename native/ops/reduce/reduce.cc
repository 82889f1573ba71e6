// Reductions over any axes. Sums run in f64 and are rounded once to the result's dtype (see
// kernels/cpu/reduce/reduce.cc). Gradients, with dy spread over the R reduced elements:
//   sum        dx = dy
//   mean       dx = dy / R
//   logsumexp  dx = dy * e^(x - y)
//   variance   dx = dy * 2 (x - mean) / (R - correction)
//   max, min   dx = dy at the first position of the extreme, 0 elsewhere
#include "engine/launch.h"
#include "kernels/shared/op_codes.h"
#include "ops/axes.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

Tensor run_reduce(const char* op, const Reduced& r, DType dtype, balora_reduce_op code,
                  double correction) {
  Tensor y = Tensor::empty(r.x.engine(), r.result, dtype);
  using O = balora_reduce;
  launch<O>(op, &KernelTable::reduce, {{&O::x, r.x}}, {{&O::y, y.view({r.x.dim(0), r.x.dim(2)})}},
            {.op = code, .correction = correction});
  return y;
}

void check_not_empty(const char* op, const Tensor& x, const Reduced& r) {
  if (r.count > 0) return;
  throw ArgumentError(concat(op, ": nothing to reduce in ", x.shape().to_string()));
}

// The part of a reduction that restore() needs, without keeping its tensor alive.
Reduced layout_of(const Reduced& r) {
  return {Tensor(), r.kept, r.result, r.count, r.order};
}

// Ops whose gradient needs x: logsumexp and variance.
Tensor reduce_through_x(const char* op, const Tensor& x, const std::vector<int64_t>& axes,
                        bool keep_dims, balora_reduce_op code, double correction) {
  const Reduced r = reduce_axes(op, x, axes, keep_dims);
  check_not_empty(op, x, r);
  const Tensor wide = run_reduce(op, r, accumulator_dtype(x.dtype()), code, correction);
  Tensor y = cast(wide, x.dtype()).detach();
  record(
      op, {x}, {y},
      [op, code, correction, x3 = Saved(r.x), wide = Saved(wide), shape = x.shape(),
       layout = layout_of(r)](std::span<const Tensor> dy, GradSink& sink) {
        const Tensor rows = x3.get(), dx = empty_like(rows);
        const Shape flat{rows.dim(0), rows.dim(2)};
        using O = balora_reduce_backward;
        launch<O>(
            op, &KernelTable::reduce_backward,
            {{&O::dy, contiguous(dy[0]).view(flat)}, {&O::x, rows}, {&O::y, wide.get().view(flat)}},
            {{&O::dx, dx}}, {.op = code, .correction = correction});
        sink.add(0, layout.restore(dx, shape));
      });
  return y;
}

struct Extreme {
  Tensor values, positions;
  Reduced reduced;
};

Extreme run_extreme(const char* op, const Tensor& x, const std::vector<int64_t>& axes,
                    bool keep_dims, bool is_max) {
  check_float(op, "x", x);
  Extreme out{{}, {}, reduce_axes(op, x, axes, keep_dims)};
  const Reduced& r = out.reduced;
  check_not_empty(op, x, r);
  if (r.count > INT32_MAX)
    throw UnsupportedError(concat(op, ": more than 2^31 - 1 values in a row"));
  out.values = Tensor::empty(x.engine(), r.result, x.dtype());
  out.positions = Tensor::empty(x.engine(), r.result, DType::kI32);
  const Shape flat{r.x.dim(0), r.x.dim(2)};
  using O = balora_extreme;
  launch<O>(op, &KernelTable::extreme, {{&O::x, r.x}},
            {{&O::values, out.values.view(flat)}, {&O::positions, out.positions.view(flat)}},
            {.is_max = is_max});
  return out;
}

Tensor extreme(const char* op, const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims,
               bool is_max) {
  const Extreme e = run_extreme(op, x, axes, keep_dims, is_max);
  record(op, {x}, {e.values},
         [op, at = Saved(e.positions), rows = e.reduced.x.shape(), shape = x.shape(),
          layout = layout_of(e.reduced)](std::span<const Tensor> dy, GradSink& sink) {
           const Shape one{rows[0], 1, rows[2]};
           const Tensor dx = Tensor::empty(dy[0].engine(), rows, dy[0].dtype());
           using O = balora_scatter_add;
           launch<O>(op, &KernelTable::scatter_add,
                     {{&O::index, at.get().view(one)}, {&O::source, contiguous(dy[0]).view(one)}},
                     {{&O::y, dx}});
           sink.add(0, layout.restore(dx, shape));
         });
  return e.values;
}

}  // namespace

Tensor sum(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims) {
  check_float("sum", "x", x);
  const Reduced r = reduce_axes("sum", x, axes, keep_dims);
  Tensor y = run_reduce("sum", r, x.dtype(), BALORA_SUM, 0);
  record("sum", {x}, {y},
         [shape = x.shape(), kept = r.kept](std::span<const Tensor> dy, GradSink& sink) {
           sink.add(0, broadcast_view(reshape(dy[0], kept), shape));
         });
  return y;
}

Tensor mean(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims) {
  check_float("mean", "x", x);
  const Reduced r = reduce_axes("mean", x, axes, keep_dims);
  check_not_empty("mean", x, r);
  Tensor y = run_reduce("mean", r, x.dtype(), BALORA_MEAN, 0);
  record("mean", {x}, {y},
         [shape = x.shape(), kept = r.kept, count = r.count](std::span<const Tensor> dy,
                                                             GradSink& sink) {
           const Tensor share = affine(reshape(dy[0], kept), 1.0 / static_cast<double>(count), 0);
           sink.add(0, broadcast_view(share, shape));
         });
  return y;
}

Tensor log_sum_exp(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims) {
  check_float("logsumexp", "x", x);
  return reduce_through_x("logsumexp", x, axes, keep_dims, BALORA_LOGSUMEXP, 0);
}

Tensor variance(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims,
                double correction) {
  check_float("variance", "x", x);
  const Reduced r = reduce_axes("variance", x, axes, keep_dims);
  if (!(static_cast<double>(r.count) > correction)) {
    throw ArgumentError(
        concat("variance: ", r.count, " values are too few for a correction of ", correction));
  }
  return reduce_through_x("variance", x, axes, keep_dims, BALORA_VARIANCE, correction);
}

Tensor max(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims) {
  return extreme("max", x, axes, keep_dims, true);
}
Tensor min(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims) {
  return extreme("min", x, axes, keep_dims, false);
}

Tensor argmax(const Tensor& x, int64_t axis, bool keep_dims) {
  check_float("argmax", "x", x);
  return run_extreme("argmax", x, {axis}, keep_dims, true).positions;
}
Tensor argmin(const Tensor& x, int64_t axis, bool keep_dims) {
  check_float("argmin", "x", x);
  return run_extreme("argmin", x, {axis}, keep_dims, false).positions;
}

}  // namespace balora
