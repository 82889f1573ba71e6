// Steps of optimisers: their options come as structures.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

template <>
struct Named<AdamwParameters> {
  static auto fields() {
    using S = AdamwParameters;
    return std::tuple{field("params", &S::params), field("grads", &S::grads),
                      field("m", &S::m),           field("v", &S::v),
                      field("rates", &S::rates),   field("weightDecays", &S::weight_decays)};
  }
};
template <>
struct Named<AdamwOptions> {
  static auto fields() {
    using S = AdamwOptions;
    return std::tuple{field("beta1", &S::beta1), field("beta2", &S::beta2), field("eps", &S::eps)};
  }
};
template <>
struct Named<SgdOptions> {
  static auto fields() {
    using S = SgdOptions;
    return std::tuple{field("lr", &S::lr),
                      field("momentum", &S::momentum),
                      field("dampening", &S::dampening),
                      field("weightDecay", &S::weight_decay),
                      field("nesterov", &S::nesterov),
                      field("first", &S::first)};
  }
};
template <>
struct Named<AdafactorMoments> {
  static auto fields() {
    using S = AdafactorMoments;
    return std::tuple{field("row", &S::row), field("column", &S::column), field("m", &S::m)};
  }
};
template <>
struct Named<AdafactorOptions> {
  static auto fields() {
    using S = AdafactorOptions;
    return std::tuple{field("lr", &S::lr),
                      field("beta1", &S::beta1),
                      field("beta2", &S::beta2),
                      field("eps", &S::eps),
                      field("clip", &S::clip),
                      field("weightDecay", &S::weight_decay),
                      field("scaleFloor", &S::scale_floor)};
  }
};

void bind_optimizer(Module& m) {
  op(m, "adamwSteps", &adamw_steps, {"parameters", "coefficient", "options"}, Grad::kNone);
  op(m, "sgdStep", &sgd_step, {"param", "grad", "buffer", "coefficient", "options"}, Grad::kNone);
  op(m, "adafactorStep", &adafactor_step, {"param", "grad", "moments", "coefficient", "options"},
     Grad::kNone);
}

}  // namespace balora::binding
