// Axis bookkeeping shared by reductions and broadcasting; see axes.h.
#include "ops/axes.h"

#include <algorithm>
#include <array>

#include "engine/launch.h"
#include "kernels/shared/op_codes.h"
#include "ops/ops.h"

namespace balora {

int checked_axis(const char* op, const Tensor& x, int64_t axis) {
  const int n = x.ndim();
  const int64_t index = axis < 0 ? axis + n : axis;
  if (index < 0 || index >= n) {
    throw ArgumentError(concat(op, ": axis ", axis, " does not exist in ", x.shape().to_string()));
  }
  return static_cast<int>(index);
}

Reduced reduce_axes(const char* op, const Tensor& x, const std::vector<int64_t>& axes,
                    bool keep_dims) {
  std::array<bool, BALORA_MAX_DIMS> reduced{};
  if (axes.empty()) reduced.fill(true);
  for (const int64_t axis : axes) {
    bool& mark = reduced[static_cast<size_t>(checked_axis(op, x, axis))];
    if (mark) throw ArgumentError(concat(op, ": axis ", axis, " occurs twice"));
    mark = true;
  }
  Reduced out;
  out.kept = x.shape();
  std::vector<int64_t> order, last;
  int64_t before = 1, after = 1;
  out.count = 1;
  bool together = true;  // kept axes on both sides of one block of reduced ones
  for (int i = 0; i < x.ndim(); ++i) {
    const int64_t extent = x.shape()[i];
    if (reduced[static_cast<size_t>(i)]) {
      together = together && (after == 1 || extent == 1);
      out.count *= extent;
      out.kept[i] = 1;
      last.push_back(i);
      if (keep_dims) out.result.push_back(1);
    } else {
      (last.empty() || out.count == 1 ? before : after) *= extent;
      order.push_back(i);
      out.result.push_back(extent);
    }
  }
  if (together) {
    out.x = contiguous(x.detach()).view({before, out.count, after});
  } else {
    order.insert(order.end(), last.begin(), last.end());
    out.x = contiguous(permute(x.detach(), order)).view({before * after, out.count, 1});
    out.order = std::move(order);
  }
  return out;
}

Tensor Reduced::restore(const Tensor& dx, const Shape& shape) const {
  if (order.empty()) return dx.view(shape);
  Shape moved;
  std::vector<int64_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    moved.push_back(shape[static_cast<int>(order[i])]);
    inverse[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  }
  return permute(dx.view(moved), inverse);
}

Shape broadcast_shape(const char* op, const Shape& a, const Shape& b) {
  const int n = std::max(a.ndim(), b.ndim());
  Shape out;
  for (int i = 0; i < n; ++i) {
    const int from_a = i - (n - a.ndim()), from_b = i - (n - b.ndim());
    const int64_t x = from_a < 0 ? 1 : a[from_a], y = from_b < 0 ? 1 : b[from_b];
    if (x != y && x != 1 && y != 1) {
      throw ArgumentError(
          concat(op, ": the shapes ", a.to_string(), " and ", b.to_string(), " do not broadcast"));
    }
    out.push_back(x == 1 ? y : x);
  }
  return out;
}

Tensor broadcast_view(const Tensor& x, const Shape& shape) {
  Shape strides = shape;
  for (int i = 0; i < shape.ndim(); ++i) {
    const int from = i - (shape.ndim() - x.ndim());
    strides[i] = from < 0 || (x.shape()[from] == 1 && shape[i] != 1) ? 0 : x.strides()[from];
  }
  return x.detach().view(shape, strides, 0);
}

Tensor sum_to_shape(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  std::vector<int64_t> axes;
  const int extra = x.ndim() - shape.ndim();
  for (int i = 0; i < x.ndim(); ++i) {
    if (i < extra || (shape[i - extra] == 1 && x.shape()[i] != 1)) axes.push_back(i);
  }
  // Only axes of extent 1 were added: an empty list of axes would mean all of them.
  if (axes.empty()) return reshape(x, shape);
  return reshape(sum(x, axes, true), shape);
}

}  // namespace balora
