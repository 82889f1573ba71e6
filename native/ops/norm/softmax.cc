// softmax and log_softmax over the last dimension. Kept for backward: x and each row's log-sum-exp.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

Tensor softmax_family(const char* op, const Tensor& x, bool logarithm) {
  const Tensor x2 = contiguous_rows(op, "x", x);
  Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  const Tensor lse = Tensor::empty(x.engine(), {x2.dim(0)}, accumulator_dtype(x.dtype()));
  using O = balora_softmax_forward;
  launch<O>(op, &KernelTable::softmax_forward, {{&O::x, x2}},
            {{&O::y, y.view(x2.shape())}, {&O::lse, lse}}, {.logarithm = logarithm});
  record(
      op, {x}, {y},
      [x2 = Saved(x2), lse = Saved(lse), shape = x.shape(), logarithm](std::span<const Tensor> dy,
                                                                       GradSink& sink) {
        const Tensor rows = x2.get();
        const Tensor dx = empty_like(rows);
        using O = balora_softmax_backward;
        launch<O>(
            "softmax_backward", &KernelTable::softmax_backward,
            {{&O::dy, contiguous(dy[0]).view(rows.shape())}, {&O::x, rows}, {&O::lse, lse.get()}},
            {{&O::dx, dx}}, {.logarithm = logarithm});
        sink.add(0, dx.view(shape));
      });
  return y;
}

}  // namespace

Tensor softmax(const Tensor& x) {
  return softmax_family("softmax", x, false);
}
Tensor log_softmax(const Tensor& x) {
  return softmax_family("log_softmax", x, true);
}

}  // namespace balora
