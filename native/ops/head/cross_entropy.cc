// Cross-entropy of logits (N,V) against class ids (N) i32, -100 meaning "does not count"; reduction
// none, sum, or mean over the rows that count. The loss is f32 (f64 for f64). Kept for backward:
// the logits and each row's log-sum-exp. A target outside the classes is found when the op runs; a
// mean over no row at all is NaN.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

balora_reduction reduction_of(const std::string& reduction) {
  if (reduction == "none") return BALORA_REDUCTION_NONE;
  if (reduction == "sum") return BALORA_REDUCTION_SUM;
  if (reduction == "mean") return BALORA_REDUCTION_MEAN;
  throw ArgumentError("cross_entropy: reduction must be none, sum or mean, got " + reduction);
}

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const std::string& reduction) {
  check_float("cross_entropy", "logits", logits);
  check_ndim("cross_entropy", "logits (N,V)", logits, 2);
  check_shape("cross_entropy", "targets", targets, {logits.dim(0)}, "(N)");
  check_dtype("cross_entropy", "targets", targets, DType::kI32);
  const balora_reduction kind = reduction_of(reduction);

  const Tensor z = contiguous(logits.detach()), t = contiguous(targets.detach());
  const DType wide = accumulator_dtype(logits.dtype());
  const Shape rows{z.dim(0)};
  Tensor loss = Tensor::empty(z.engine(), kind == BALORA_REDUCTION_NONE ? rows : Shape{}, wide);
  const Tensor lse = Tensor::empty(z.engine(), rows, wide);
  using O = balora_cross_entropy_forward;
  launch<O>("cross_entropy", &KernelTable::cross_entropy_forward,
            {{&O::logits, z}, {&O::targets, t}}, {{&O::loss, loss}, {&O::lse, lse}},
            {.reduction = kind});
  record("cross_entropy", {logits}, {loss},
         [z = Saved(z), t = Saved(t), lse = Saved(lse), kind](std::span<const Tensor> dy,
                                                              GradSink& sink) {
           const Tensor dz = empty_like(z.get());
           using O = balora_cross_entropy_backward;
           launch<O>("cross_entropy_backward", &KernelTable::cross_entropy_backward,
                     {{&O::dloss, contiguous(dy[0])},
                      {&O::logits, z.get()},
                      {&O::targets, t.get()},
                      {&O::lse, lse.get()}},
                     {{&O::dlogits, dz}}, {.reduction = kind});
           sink.add(0, dz);
         });
  return loss;
}

}  // namespace balora
