// The fused head losses, whose operands and options come as structures.
#include "binding/bind.h"
#include "ops/head/losses.h"

namespace balora::binding {
template <>
struct Named<Teacher> {
  static auto fields() {
    using O = Teacher;
    return std::tuple{field("hidden", &O::hidden), field("head", &O::head), field("mean", &O::mean),
                      field("entropy", &O::entropy), field("logProbability", &O::log_probability)};
  }
};

template <>
struct Named<HeadInputs> {
  static auto fields() {
    using O = HeadInputs;
    return std::tuple{field("hidden", &O::hidden),
                      field("teacher", &O::teacher),
                      field("head", &O::head),
                      field("targets", &O::targets),
                      field("regularized", &O::regularized),
                      field("scales", &O::scales),
                      field("factors", &O::factors)};
  }
};

template <>
struct Named<HeadOptions> {
  static auto fields() {
    using O = HeadOptions;
    return std::tuple{field("taskScale", &O::task_scale),
                      field("consistencyScale", &O::consistency_scale),
                      field("diversityScale", &O::diversity_scale),
                      field("temperature", &O::temperature),
                      field("entropyTemperature", &O::entropy_temperature),
                      field("softcap", &O::softcap),
                      field("logitScale", &O::logit_scale),
                      field("entropyTopK", &O::entropy_top_k),
                      field("chunkBytes", &O::chunk_bytes)};
  }
};

void bind_losses(Module& m) {
  op(m, "headLosses", &head_losses, {"operands", "options", "logProbabilities"}, Grad::kYes);
  op(m, "headRows", &head_rows, {"operands", "options"}, Grad::kNone);
  op(m, "teacherSummary", &teacher_summary,
     {"teacher", "teacherHead", "head", "targets", "options"}, Grad::kNone);
  op(m, "svdRatioGram", &svd_ratio_gram, {"hidden", "gram", "k", "norm"}, Grad::kYes);
  op(m, "svdRatio", &svd_ratio, {"hidden", "head", "k", "norm", "softcap", "chunkBytes"},
     Grad::kYes);
}

}  // namespace balora::binding
