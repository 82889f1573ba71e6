// Linears with low-rank parts.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

void bind_linear(Module& m) {
  op(m, "linearGroup", &linear_group,
     {"x", "adapterInput", "weights", "biases", "a", "b", "scales", "linears", "isChange"},
     Grad::kYes);
}

}  // namespace balora::binding
