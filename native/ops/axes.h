// Axes as ops take them: negative ones count from the end, an empty list means all of them.
#pragma once
#include <vector>

#include "tensor/tensor.h"

namespace balora {

// In [0, ndim), or an ArgumentError that names the op.
int checked_axis(const char* op, const Tensor& x, int64_t axis);

// x with some axes reduced, seen as (A,R,C) contiguous and off the tape: a view where the reduced
// axes lie together, else a copy with them last.
struct Reduced {
  Tensor x;       // (A,R,C)
  Shape kept;     // what is left, with extent 1 for the reduced axes
  Shape result;   // kept, or without those axes
  int64_t count;  // R
  // The permutation that put the reduced axes last; empty: none was needed.
  std::vector<int64_t> order;

  // A gradient for (A,R,C) seen in the original shape.
  Tensor restore(const Tensor& dx, const Shape& shape) const;
};
Reduced reduce_axes(const char* op, const Tensor& x, const std::vector<int64_t>& axes,
                    bool keep_dims);

// The shape that a and b broadcast to (right aligned, 1 stretches).
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b);

// x seen with a broadcast shape, by strides of 0; no gradient is recorded.
Tensor broadcast_view(const Tensor& x, const Shape& shape);

// The gradient of broadcast_view: sums the stretched axes. x itself where the shapes agree.
Tensor sum_to_shape(const Tensor& x, const Shape& shape);

}  // namespace balora
