// c = op(a) op(b) over the last two dimensions, op a transposition or none, batch dimensions
// broadcast as in NumPy. Nothing is copied for a transposition or a broadcast; products accumulate
// in f32 (f64 for f64) and round once. Backward, for plain a (...,M,K), b (...,K,N): da = dc b^T,
// db = a^T dc, summed over the dimensions that were repeated.
#include <algorithm>

#include "engine/launch.h"
#include "kernels/shared/op_codes.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

Tensor transpose_last(const Tensor& x) {
  Shape shape = x.shape(), strides = x.strides();
  const int n = shape.ndim();
  std::swap(shape[n - 1], shape[n - 2]);
  std::swap(strides[n - 1], strides[n - 2]);
  return x.view(shape, strides, 0);
}

// Broadcast batch dimensions followed by (M,N).
Shape product_shape(const Tensor& a, const Tensor& b) {
  const int batch = std::max(a.ndim(), b.ndim()) - 2;
  Shape shape;
  for (int i = 0; i < batch; ++i) {
    const int ia = i - (batch - (a.ndim() - 2)), ib = i - (batch - (b.ndim() - 2));
    const int64_t ea = ia < 0 ? 1 : a.dim(ia), eb = ib < 0 ? 1 : b.dim(ib);
    if (ea != eb && ea != 1 && eb != 1) {
      throw ArgumentError(concat("matmul: batch dimensions do not broadcast, a is ",
                                 a.shape().to_string(), ", b is ", b.shape().to_string()));
    }
    shape.push_back(ea == 1 ? eb : ea);
  }
  shape.push_back(a.dim(-2));
  shape.push_back(b.dim(-1));
  return shape;
}

Tensor product(const Tensor& a, const Tensor& b) {
  Tensor c = Tensor::empty(a.engine(), product_shape(a, b), a.dtype());
  using O = balora_matmul;
  launch<O>("matmul", &KernelTable::matmul, {{&O::a, a}, {&O::b, b}}, {{&O::c, c}}, {.alpha = 1.0});
  return c;
}

// Sums a contiguous gradient over the dimensions in which its operand was repeated.
Tensor sum_repeats(Tensor grad, const Shape& shape) {
  const int extra = grad.ndim() - shape.ndim();
  for (int i = 0; i < grad.ndim() - 2; ++i) {
    const int64_t extent = grad.dim(i);
    if (extent == 1 || (i >= extra && shape[i - extra] == extent)) continue;
    // The extents are multiplied, not divided out of numel(): an empty batch has a sum, of zeros.
    int64_t outer = 1, inner = 1;
    for (int d = 0; d < i; ++d) outer *= grad.dim(d);
    for (int d = i + 1; d < grad.ndim(); ++d) inner *= grad.dim(d);
    Shape reduced = grad.shape();
    reduced[i] = 1;
    const Tensor sum = Tensor::empty(grad.engine(), reduced, grad.dtype());
    using O = balora_reduce;
    launch<O>("matmul_backward", &KernelTable::reduce, {{&O::x, grad.view({outer, extent, inner})}},
              {{&O::y, sum.view({outer, inner})}}, {.op = BALORA_SUM, .correction = 0});
    grad = sum;
  }
  return grad.view(shape);
}

// Contiguous x (...,M,K) as (rows,K).
Tensor as_rows(const Tensor& x) {
  int64_t rows = 1;
  for (int d = 0; d < x.ndim() - 1; ++d) rows *= x.dim(d);
  return x.view({rows, x.dim(-1)});
}

// x^T y for every matrix of the batch, summed to `shape`. Where the batch was repeated over a plain
// matrix that is one product over all rows.
Tensor inner_gradient(const Tensor& x, const Tensor& y, const Shape& shape) {
  if (shape.ndim() == 2 && x.is_contiguous() && y.is_contiguous() && x.ndim() == y.ndim()) {
    return product(transpose_last(as_rows(x)), as_rows(y));
  }
  return sum_repeats(product(transpose_last(x), y), shape);
}

void check_operand(const char* name, const Tensor& x) {
  check_float("matmul", name, x);
  if (x.ndim() < 2) {
    throw ArgumentError(
        concat("matmul: ", name, " needs at least two dimensions, got ", x.shape().to_string()));
  }
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  check_operand("a", a);
  check_operand("b", b);
  check_dtype("matmul", "b", b, a.dtype());
  const Tensor left = transpose_a ? transpose_last(a.detach()) : a.detach();
  const Tensor right = transpose_b ? transpose_last(b.detach()) : b.detach();
  if (left.dim(-1) != right.dim(-2)) {
    throw ArgumentError(
        concat("matmul: inner dimensions differ, op(a) is (...,M,K)=", left.shape().to_string(),
               ", op(b) is (...,K,N)=", right.shape().to_string()));
  }
  Tensor c = product(left, right);
  record("matmul", {a, b}, {c},
         [left = Saved(left), right = Saved(right), transpose_a, transpose_b](
             std::span<const Tensor> dy, GradSink& sink) {
           const Tensor l = left.get(), r = right.get(), dc = contiguous(dy[0]);
           const auto stored = [](const Tensor& x, bool transposed) {
             return (transposed ? transpose_last(x) : x).shape();
           };
           if (sink.wants(0)) {
             const Tensor da =
                 transpose_a ? product(r, transpose_last(dc)) : product(dc, transpose_last(r));
             sink.add(0, sum_repeats(da, stored(l, transpose_a)));
           }
           if (sink.wants(1)) {
             const Shape shape = stored(r, transpose_b);
             sink.add(1, transpose_b ? inner_gradient(dc, l, shape) : inner_gradient(l, dc, shape));
           }
         });
  return c;
}

}  // namespace balora
