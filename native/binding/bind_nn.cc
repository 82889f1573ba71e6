// Ops of transformer layers: activations, positions, attention, softmax and its loss.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

void bind_nn(Module& m) {
  op(m, "gated", &gated, {"gate", "up", "activation"}, Grad::kYes);
  op(m, "rope", &rope, {"x", "cos", "sin", "positions"}, Grad::kYes);
  op(m, "softmax", &softmax, {"x"}, Grad::kYes);
  op(m, "logSoftmax", &log_softmax, {"x"}, Grad::kYes);
  op(m, "crossEntropy", &cross_entropy, {"logits", "targets", "reduction"}, Grad::kYes);
}

}  // namespace balora::binding
