// Creation, shape, indexing, and what optimisers write in place.
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

void bind_tensor(Module& m) {
  op(m, "full", &full, {"shape", "value", "dtype"}, Grad::kNone);
  op(m, "arange", &arange, {"start", "stop", "step", "dtype"}, Grad::kNone);
  op(m, "randomUniform", &random_uniform, {"shape", "low", "high", "seed", "stream", "dtype"},
     Grad::kNone);
  op(m, "randomNormal", &random_normal, {"shape", "mean", "deviation", "seed", "stream", "dtype"},
     Grad::kNone);
  op(m, "randomWords", &random_words, {"count", "seed", "stream"}, Grad::kNone);
  op(m, "contiguous", &contiguous, {"x"}, Grad::kYes);
  op(m, "reshape", &reshape, {"x", "shape"}, Grad::kYes);
  op(m, "permute", &permute, {"x", "order"}, Grad::kYes);
  op(m, "expand", &expand, {"x", "shape"}, Grad::kYes);
  op(m, "slice", &slice, {"x", "axis", "start", "stop", "step"}, Grad::kYes);
  op(m, "split", &split, {"x", "sizes", "axis"}, Grad::kYes);
  op(m, "concat", &concat_tensors, {"parts", "axis"}, Grad::kYes);
  op(m, "embedding", &embedding, {"weight", "ids"}, Grad::kYes);
  op(m, "indexSelect", &index_select, {"x", "rows"}, Grad::kYes);
  op(m, "gather", &gather, {"x", "index", "axis"}, Grad::kYes);
  op(m, "scatterAdd", &scatter_add, {"x", "index", "source", "axis"}, Grad::kYes);
  op(m, "topK", &top_k, {"x", "k"}, Grad::kYes);
  op(m, "copyInPlace", &copy_in_place, {"x", "source"}, Grad::kNone);
  op(m, "fillInPlace", &fill_in_place, {"x", "value"}, Grad::kNone);
  op(m, "addInPlace", &add_in_place, {"x", "source", "alpha"}, Grad::kNone);
  op(m, "scaleInPlace", &scale_in_place, {"x", "coefficient"}, Grad::kNone);
  op(m, "adamwSteps", &adamw_steps, {"parameters", "coefficient", "options"}, Grad::kNone);
  op(m, "sgdStep", &sgd_step, {"param", "grad", "buffer", "coefficient", "options"}, Grad::kNone);
  op(m, "adafactorStep", &adafactor_step, {"param", "grad", "moments", "coefficient", "options"},
     Grad::kNone);
  op(m, "gradNorm", &grad_norm, {"grads", "kind"}, Grad::kNone);
  op(m, "clipCoefficient", &clip_coefficient, {"norm", "maxNorm"}, Grad::kNone);
}

}  // namespace balora::binding
