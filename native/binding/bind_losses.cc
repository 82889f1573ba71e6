// The fused head losses, whose operands and options come as structures.
#include "binding/bind.h"
#include "ops/head/losses.h"

namespace balora::binding {
namespace {

using Maybe = std::optional<Tensor>;

// HeadInputs as JS passes them: the teacher by its hidden states, by its summary, or none.
struct HeadOperands {
  Tensor hidden, head;
  Maybe teacher, teacher_head, teacher_mean, teacher_entropy;
  Maybe targets, regularized, scales;
};

Teacher teacher_of(const char* op, const HeadOperands& given) {
  const bool live = given.teacher.has_value(), kept = given.teacher_mean.has_value();
  if (kept != given.teacher_entropy.has_value()) {
    throw ArgumentError(concat(op, ": a teacher's summary is teacherMean and teacherEntropy"));
  }
  if (kept && live) {
    throw ArgumentError(concat(op, ": teacher, and a summary in its place; give one of them"));
  }
  if (given.teacher_head && !live) {
    throw ArgumentError(concat(op, ": teacherHead without teacher"));
  }
  if (live) return LiveTeacher{*given.teacher, given.teacher_head};
  if (kept) return TeacherSummary{*given.teacher_mean, *given.teacher_entropy};
  return {};
}

HeadInputs inputs_of(const char* op, const HeadOperands& given) {
  return {.hidden = given.hidden,
          .teacher = teacher_of(op, given),
          .head = given.head,
          .targets = given.targets,
          .regularized = given.regularized,
          .scales = given.scales};
}

std::tuple<Tensor, Tensor> bound_head_losses(const HeadOperands& operands,
                                             const HeadOptions& options) {
  return head_losses(inputs_of("head_losses", operands), options);
}

Tensor bound_head_rows(const HeadOperands& operands, const HeadOptions& options) {
  return head_rows(inputs_of("head_rows", operands), options);
}

std::tuple<Tensor, Tensor> bound_teacher_summary(const Tensor& teacher, const Maybe& teacher_head,
                                                 const Tensor& head, double temperature,
                                                 double softcap, int64_t chunk_bytes) {
  const TeacherSummary summary = summarize_teacher({teacher, teacher_head}, head,
                                                   {.temperature = temperature,
                                                    .entropy_temperature = 1,
                                                    .softcap = softcap,
                                                    .chunk_bytes = chunk_bytes});
  return {summary.mean, summary.entropy};
}

}  // namespace

template <>
struct Named<HeadOperands> {
  static auto fields() {
    using O = HeadOperands;
    return std::tuple{field("hidden", &O::hidden),
                      field("head", &O::head),
                      field("teacher", &O::teacher),
                      field("teacherHead", &O::teacher_head),
                      field("teacherMean", &O::teacher_mean),
                      field("teacherEntropy", &O::teacher_entropy),
                      field("targets", &O::targets),
                      field("regularized", &O::regularized),
                      field("scales", &O::scales)};
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
                      field("entropyTopK", &O::entropy_top_k),
                      field("chunkBytes", &O::chunk_bytes)};
  }
};

void bind_losses(Module& m) {
  op(m, "headLosses", &bound_head_losses, {"operands", "options"}, Grad::kYes);
  op(m, "headRows", &bound_head_rows, {"operands", "options"}, Grad::kNone);
  op(m, "teacherSummary", &bound_teacher_summary,
     {"teacher", "teacherHead", "head", "temperature", "softcap", "chunkBytes"}, Grad::kNone);
  op(m, "svdRatioGram", &svd_ratio_gram, {"hidden", "gram", "k", "norm"}, Grad::kYes);
  op(m, "svdRatio", &svd_ratio, {"hidden", "head", "k", "norm", "softcap", "chunkBytes"},
     Grad::kYes);
}

}  // namespace balora::binding
