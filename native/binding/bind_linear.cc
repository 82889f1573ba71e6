// Products: matmul, and linears with low-rank parts.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

void bind_linear(Module& m) {
  op(m, "matmul", &matmul, {"a", "b", "transposeA", "transposeB"}, Grad::kYes);
  op(m, "linearGroup", &linear_group,
     {"x", "adapterInput", "weights", "biases", "a", "b", "scales", "linears", "isChange"},
     Grad::kYes);
  op(m, "columnScale", &column_scale, {"x", "scale", "bias"}, Grad::kYes);
  op(m, "rowNorm", &row_norm, {"weight", "a", "b", "scales"}, Grad::kNone);
}

}  // namespace balora::binding
