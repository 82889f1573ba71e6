// Normalisation ops.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

void bind_norm(Module& m) {
  op(m, "rmsNorm", &rms_norm, {"x", "weight", "eps", "weightOffset", "castBeforeWeight"},
     Grad::kYes);
}

}  // namespace balora::binding
