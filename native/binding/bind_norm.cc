// Normalisation ops.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

void bind_norm(Module& m) {
  op(m, "rmsNorm", &rms_norm, {"x", "weight", "eps", "weightOffset", "castBeforeWeight"},
     Grad::kYes);
  op(m, "rmsNormAdd", &rms_norm_add,
     {"x", "residual", "weight", "eps", "weightOffset", "castBeforeWeight"}, Grad::kYes);
  op(m, "layerNorm", &layer_norm, {"x", "weight", "bias", "eps"}, Grad::kYes);
}

}  // namespace balora::binding
