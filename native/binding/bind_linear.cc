// Linears with low-rank parts, whose operands come as structures.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

template <>
struct Named<LowRankFactors> {
  static auto fields() {
    using S = LowRankFactors;
    return std::tuple{field("a", &S::a), field("b", &S::b)};
  }
};
template <>
struct Named<LowRankPart> {
  static auto fields() {
    using S = LowRankPart;
    return std::tuple{field("a", &S::a), field("b", &S::b), field("start", &S::start),
                      field("scale", &S::scale), field("form", &S::form)};
  }
};
template <>
struct Named<LinearLayer> {
  static auto fields() {
    using S = LinearLayer;
    return std::tuple{field("weight", &S::weight), field("bias", &S::bias),
                      field("outputScale", &S::output_scale),
                      field("weightChange", &S::weight_change), field("lowRank", &S::low_rank)};
  }
};

void bind_linear(Module& m) {
  op(m, "linearGroup", &linear_group, {"x", "adapterInput", "rowOffsets", "linears"}, Grad::kYes);
  op(m, "rowNorm", &row_norm, {"weight", "lowRank"}, Grad::kNone);
}

}  // namespace balora::binding
