// The norm of each row of weight + sum of scale * (b a - b0 a0): weight (O,I) of any float type, a
// (R,I) and b (O,R) in the accumulator type -> (O), likewise. No gradient: DoRA
// holds this norm constant.
#include "ops/linear/linear_group.h"

namespace balora {

Tensor row_norm(const Tensor& weight, const std::vector<LowRankPart>& parts) {
  constexpr const char* kOp = "row_norm";
  check_float(kOp, "weight", weight);
  check_ndim(kOp, "weight", weight, 2);
  const DType wide = accumulator_dtype(weight.dtype());
  LaunchOperands all;
  const auto factor = [&](const char* name, const Tensor& t) {
    check_dtype(kOp, name, t, wide);
    return all.read(contiguous(t.detach()));
  };
  const Slot matrix = all.read(contiguous(weight.detach()).as_encoded());
  std::vector<PartOf<Slot>> slots;
  for (const LowRankPart& part : parts) {
    PartOf<Slot>& p = slots.emplace_back();
    p.form = checked_form(kOp, {}, part, weight);
    p.scale = part.scale, p.a = factor("a", part.a), p.b = factor("b", part.b);
    if (!part.start) continue;
    p.start_a = factor("start.a", part.start->a), p.start_b = factor("start.b", part.start->b);
  }
  Tensor norm = Tensor::empty(weight.engine(), {weight.dim(0)}, wide);
  const Slot result = all.write(norm);
  launch(kOp, all, [matrix, slots, result](Launch& l) {
    std::vector<balora_low_rank> operands;
    for (const PartOf<Slot>& part : slots) operands.push_back(kernel_part(l, part));
    return call(l.kernels->row_norm, l.ctx,
                {.weight = weight_of(*l[matrix]),
                 .parts = operands.data(),
                 .part_count = static_cast<int32_t>(operands.size()),
                 .norm = l[result]});
  });
  return norm;
}

}  // namespace balora
