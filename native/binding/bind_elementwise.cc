// Elementwise ops, comparisons and reductions.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

void bind_elementwise(Module& m) {
  op(m, "unary", &unary, {"x", "name"}, Grad::kYes);
  op(m, "clamp", &clamp, {"x", "low", "high"}, Grad::kYes);
  op(m, "affine", &affine, {"x", "a", "b"}, Grad::kYes);
  op(m, "binary", &binary, {"a", "b", "name"}, Grad::kYes);
  op(m, "compare", &compare, {"a", "b", "name"}, Grad::kNone);
  op(m, "where", &where, {"condition", "a", "b"}, Grad::kYes);
  op(m, "isFinite", &is_finite, {"x"}, Grad::kNone);
  op(m, "allFinite", &all_finite, {"tensors"}, Grad::kNone);
  op(m, "dropout", &dropout, {"x", "p", "seed", "stream"}, Grad::kYes);
  op(m, "sum", &sum, {"x", "axes", "keepDims"}, Grad::kYes);
  op(m, "mean", &mean, {"x", "axes", "keepDims"}, Grad::kYes);
  op(m, "logSumExp", &logsumexp, {"x", "axes", "keepDims"}, Grad::kYes);
  op(m, "variance", &variance, {"x", "axes", "keepDims", "correction"}, Grad::kYes);
  op(m, "max", &max, {"x", "axes", "keepDims"}, Grad::kYes);
  op(m, "min", &min, {"x", "axes", "keepDims"}, Grad::kYes);
  op(m, "argmax", &argmax, {"x", "axis", "keepDims"}, Grad::kNone);
  op(m, "argmin", &argmin, {"x", "axis", "keepDims"}, Grad::kNone);
}

}  // namespace balora::binding
