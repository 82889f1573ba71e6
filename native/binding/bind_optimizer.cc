// Steps of optimisers.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

void bind_optimizer(Module& m) {
  op(m, "adamwSteps", &adamw_steps,
     {"params", "grads", "m", "v", "rates", "weightDecays", "coefficient", "beta1", "beta2", "eps"},
     Grad::kNone);
  op(m, "sgdStep", &sgd_step,
     {"param", "grad", "buffer", "coefficient", "lr", "momentum", "dampening", "weightDecay",
      "nesterov", "first"},
     Grad::kNone);
  op(m, "adafactorStep", &adafactor_step,
     {"param", "grad", "row", "column", "m", "coefficient", "lr", "beta1", "beta2", "eps", "clip",
      "weightDecay", "scaleFloor"},
     Grad::kNone);
}

}  // namespace balora::binding
