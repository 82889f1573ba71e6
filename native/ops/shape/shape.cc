// Ops that move no values where the layout allows: reshape, permute, expand, slice and split give
// views of the same storage; concat copies. Gradients go back the same way.
#include <algorithm>

#include "engine/launch.h"
#include "ops/axes.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

Tensor narrowed(const Tensor& x, int axis, int64_t start, int64_t length, int64_t step = 1) {
  Shape shape = x.shape(), strides = x.strides();
  const int64_t offset = length > 0 ? start * strides[axis] : 0;
  shape[axis] = length;
  if (length > 1) strides[axis] *= step;  // a step beyond the end may be any number
  return x.detach().view(shape, strides, offset);
}

void copy_into(const Tensor& source, const Tensor& destination) {
  if (source.numel() == 0) return;
  using O = balora_copy;
  launch<O>("copy", &KernelTable::copy, {{&O::source, source.detach()}},
            {{&O::destination, destination}});
}

void fill_zero(const Tensor& destination) {
  if (destination.numel() == 0) return;
  using O = balora_fill;
  launch<O>("zero", &KernelTable::fill, {}, {{&O::y, destination}}, {.value = 0});
}

Shape resolved_shape(const Tensor& x, const Shape& shape) {
  Shape out = shape;
  int unknown = -1;
  for (int i = 0; i < shape.ndim(); ++i) {
    if (shape[i] >= 0) continue;
    if (shape[i] != -1 || unknown >= 0) {
      throw ArgumentError("reshape: at most one extent may be -1 and none below, got " +
                          shape.to_string());
    }
    unknown = i;
    out[i] = 1;
  }
  const int64_t known = out.numel();
  if (unknown >= 0 && known > 0) out[unknown] = x.numel() / known;
  if (out.numel() != x.numel() || (unknown >= 0 && known == 0)) {
    throw ArgumentError("reshape: " + x.shape().to_string() + " does not fit " + shape.to_string());
  }
  return out;
}

}  // namespace

Tensor reshape(const Tensor& x, const Shape& shape) {
  const Shape target = resolved_shape(x, shape);
  if (target == x.shape()) return x;
  Tensor y = contiguous(x.detach()).view(target);
  record(
      "reshape", {x}, {y},
      [from = x.shape()](std::span<const Tensor> dy, GradSink& sink) {
        sink.add(0, reshape(dy[0], from));
      },
      Gradient::kAnyFloat);
  return y;
}

Tensor permute(const Tensor& x, const std::vector<int64_t>& order) {
  const int n = x.ndim();
  std::vector<int64_t> inverse(static_cast<size_t>(n), -1);
  if (static_cast<int>(order.size()) != n) {
    throw ArgumentError(
        concat("permute: ", x.shape().to_string(), " needs ", n, " axes, got ", order.size()));
  }
  Shape shape = x.shape(), strides = x.strides();
  for (int i = 0; i < n; ++i) {
    const int axis = checked_axis("permute", x, order[static_cast<size_t>(i)]);
    if (inverse[static_cast<size_t>(axis)] >= 0) {
      throw ArgumentError(concat("permute: axis ", axis, " occurs twice"));
    }
    inverse[static_cast<size_t>(axis)] = i;
    shape[i] = x.shape()[axis];
    strides[i] = x.strides()[axis];
  }
  Tensor y = x.detach().view(shape, strides, 0);
  record(
      "permute", {x}, {y},
      [inverse](std::span<const Tensor> dy, GradSink& sink) {
        sink.add(0, permute(dy[0], inverse));
      },
      Gradient::kAnyFloat);
  return y;
}

Tensor expand(const Tensor& x, const Shape& shape) {
  if (!(broadcast_shape("expand", x.shape(), shape) == shape)) {
    throw ArgumentError("expand: " + x.shape().to_string() + " does not stretch to " +
                        shape.to_string());
  }
  Tensor y = broadcast_view(x, shape);
  record(
      "expand", {x}, {y},
      [from = x.shape()](std::span<const Tensor> dy, GradSink& sink) {
        sink.add(0, sum_to_shape(dy[0], from));
      },
      Gradient::kAnyFloat);
  return y;
}

Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t stop, int64_t step) {
  const int a = checked_axis("slice", x, axis);
  const int64_t extent = x.dim(a);
  if (step < 1) throw ArgumentError(concat("slice: step must be >= 1, got ", step));
  const int64_t from = std::clamp(start < 0 ? start + extent : start, int64_t{0}, extent);
  const int64_t to = std::clamp(stop < 0 ? stop + extent : stop, from, extent);
  const int64_t length = to > from ? (to - from - 1) / step + 1 : 0;
  Tensor y = narrowed(x, a, from, length, step);
  record(
      "slice", {x}, {y},
      [shape = x.shape(), a, from, length, step](std::span<const Tensor> dy, GradSink& sink) {
        const Tensor dx = full(dy[0].engine(), shape, 0, dy[0].dtype());
        copy_into(dy[0], narrowed(dx, a, from, length, step));
        sink.add(0, dx);
      },
      Gradient::kAnyFloat);
  return y;
}

std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int64_t axis) {
  const int a = checked_axis("split", x, axis);
  int64_t total = 0;
  for (const int64_t size : sizes) {
    if (size < 0) throw ArgumentError(concat("split: a size must be >= 0, got ", size));
    if (__builtin_add_overflow(total, size, &total)) total = INT64_MAX;
  }
  if (total != x.dim(a)) {
    throw ArgumentError(concat("split: the sizes add up to ", total, ", axis ", a, " of ",
                               x.shape().to_string(), " has ", x.dim(a)));
  }
  std::vector<Tensor> parts;
  int64_t at = 0;
  for (const int64_t size : sizes) {
    parts.push_back(narrowed(x, a, at, size));
    at += size;
  }
  const std::vector<Tensor> inputs{x};
  record("split", inputs, parts,
         [shape = x.shape(), dtype = x.dtype(), engine = &x.engine(), sizes, a](
             std::span<const Tensor> dy, GradSink& sink) {
           const Tensor dx = Tensor::empty(*engine, shape, dtype);
           int64_t from = 0;
           for (size_t i = 0; i < sizes.size(); ++i) {
             const Tensor part = narrowed(dx, a, from, sizes[i]);
             if (dy[i].defined()) {
               copy_into(dy[i], part);
             } else {
               fill_zero(part);
             }
             from += sizes[i];
           }
           sink.add(0, dx);
         });
  return parts;
}

Tensor concat_tensors(const std::vector<Tensor>& parts, int64_t axis) {
  if (parts.empty()) throw ArgumentError("concat: no tensor given");
  const Tensor& first = parts[0];
  const int a = checked_axis("concat", first, axis);
  Shape shape = first.shape();
  shape[a] = 0;
  std::vector<int64_t> sizes;
  for (const Tensor& part : parts) {
    check_dtype("concat", "every part", part, first.dtype());
    check_same_engine("concat", part, first);
    Shape expected = first.shape();
    if (part.ndim() == first.ndim()) expected[a] = part.dim(a);
    check_shape("concat", "every part", part, expected);
    sizes.push_back(part.dim(a));
    if (__builtin_add_overflow(shape[a], part.dim(a), &shape[a])) shape[a] = INT64_MAX;
  }
  Tensor y = Tensor::empty(first.engine(), shape, first.dtype());
  int64_t at = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    copy_into(parts[i], narrowed(y, a, at, sizes[i]));
    at += sizes[i];
  }
  const std::vector<Tensor> outputs{y};
  record(
      "concat", parts, outputs,
      [sizes, a](std::span<const Tensor> dy, GradSink& sink) {
        int64_t from = 0;
        for (size_t i = 0; i < sizes.size(); ++i) {
          if (sink.wants(i)) sink.add(i, narrowed(dy[0], a, from, sizes[i]));
          from += sizes[i];
        }
      },
      Gradient::kAnyFloat);
  return y;
}

}  // namespace balora
