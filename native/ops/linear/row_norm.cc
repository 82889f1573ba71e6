// The norm of each row of weight + sum of scale * b a: weight (O,I) of any float type, a (R,I) and
// b (O,R) in the accumulator type -> (O), likewise. No gradient: DoRA holds this norm constant.
#include <cmath>

#include "engine/launch.h"
#include "ops/ops.h"

namespace balora {

Tensor row_norm(const Tensor& weight, const std::vector<Tensor>& a, const std::vector<Tensor>& b,
                const std::vector<double>& scales) {
  constexpr const char* kOp = "row_norm";
  check_float(kOp, "weight", weight);
  check_ndim(kOp, "weight", weight, 2);
  if (a.size() != b.size() || a.size() != scales.size()) {
    throw ArgumentError("row_norm: the lists of operands differ in length");
  }
  const DType wide = accumulator_dtype(weight.dtype());
  std::vector<Tensor> in = {contiguous(weight.detach())};
  for (size_t p = 0; p < a.size(); ++p) {
    check_ndim(kOp, "a", a[p], 2);
    check_shape(kOp, "a", a[p], {a[p].dim(0), weight.dim(1)}, "(R,I)");
    check_shape(kOp, "b", b[p], {weight.dim(0), a[p].dim(0)}, "(O,R)");
    check_dtype(kOp, "a", a[p], wide);
    check_dtype(kOp, "b", b[p], wide);
    if (!std::isfinite(scales[p])) throw ArgumentError("row_norm: a scale is not finite");
    in.push_back(contiguous(a[p].detach()));
    in.push_back(contiguous(b[p].detach()));
  }
  const Tensor norm = Tensor::empty(weight.engine(), {weight.dim(0)}, wide);
  launch(kOp, in, std::vector<Tensor>{norm}, [scales](Launch& l) {
    std::vector<LowRankOperands> parts;
    for (size_t p = 0; p < scales.size(); ++p) {
      parts.push_back(
          {l.in(1 + 2 * p), l.in(2 + 2 * p), nullptr, nullptr, nullptr, scales[p], 0, 0});
    }
    return call(l.kernels->row_norm, l.ctx,
                {.weight = l.in(0),
                 .parts = parts.data(),
                 .count = static_cast<int32_t>(parts.size()),
                 .norm = l.out(0)});
  });
  return norm;
}

}  // namespace balora
