#include "ops/linalg/linalg.h"

#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {

void check_matrix(const char* op, const Tensor& a) {
  check_float(op, "a", a);
  check_ndim(op, "a", a, 2);
  if (a.numel() == 0) throw ArgumentError(concat(op, ": a is empty ", a.shape().to_string()));
}

void check_gram(const char* op, const char* name, const Tensor& g, int64_t channels) {
  check_dtype(op, name, g, DType::kF64);
  check_shape(op, name, g, {channels, channels}, "(C,C)");
}

void refuse_gradient(const char* op, const Tensor& a) {
  if (!grad_wanted({a})) return;
  throw ArgumentError(
      concat(op, ": has no gradient; call it under noGrad() or on a detached tensor"));
}

}  // namespace balora
