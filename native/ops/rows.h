// Operands as the (N,C) rows that row kernels take, and the (N,H,D) heads of attention: views where
// the layout allows, copies where it does not.
#pragma once
#include "ops/ops.h"
#include "tensor/tensor.h"

namespace balora {

// x (...,C) off the tape as contiguous (N,C).
inline Tensor contiguous_rows(const char* op, const char* name, const Tensor& x) {
  check_float(op, name, x);
  if (x.ndim() < 1) throw ArgumentError(concat(op, ": ", name, " needs at least one dimension"));
  const int64_t channels = x.dim(-1);
  int64_t rows = 1;
  for (int i = 0; i < x.ndim() - 1; ++i) rows *= x.dim(i);
  return contiguous(x.detach()).view({rows, channels});
}

// x off the tape, itself when every dimension but the first is contiguous (a slice of a fused
// product), else a copy.
inline Tensor row_strided(const Tensor& x) {
  int64_t step = 1;
  for (int i = x.ndim() - 1; i > 0; --i) {
    if (x.dim(i) != 1 && x.strides()[i] != step) return contiguous(x.detach());
    step *= x.dim(i);
  }
  return x.detach();
}

// The sinks (H) of the heads of q (N,H,D) off the tape; undefined without them.
inline Tensor sinks_of(const char* op, const Tensor& q, const std::optional<Tensor>& sinks) {
  if (!sinks) return {};
  check_shape(op, "sinks", *sinks, {q.dim(1)}, "(H)");
  check_dtype(op, "sinks", *sinks, accumulator_dtype(q.dtype()));
  check_same_engine(op, q, *sinks);
  return contiguous(sinks->detach());
}

}  // namespace balora
