// Linear algebra and the fused head losses.
#include "binding/bind.h"
#include "ops/head/losses.h"
#include "ops/linalg/linalg.h"

namespace balora::binding {
namespace {

using Maybe = std::optional<Tensor>;

std::tuple<Tensor, Tensor> bound_head_losses(const Tensor& hidden, const Maybe& teacher,
                                             const Tensor& head, const Maybe& teacher_head,
                                             const Maybe& targets, const Maybe& regularized,
                                             const Maybe& scales, const std::vector<double>& fixed,
                                             double temperature, int64_t entropy_top_k,
                                             double softcap, int64_t chunk_bytes) {
  if (fixed.size() != 3) throw ArgumentError("head_losses: expected three fixed scales");
  return head_losses(
      {hidden, teacher, head, teacher_head, targets, regularized, scales},
      {fixed[0], fixed[1], fixed[2], temperature, 1.0, softcap, entropy_top_k, chunk_bytes});
}

std::tuple<Tensor, Tensor> bound_head_losses_cached(const Tensor& hidden, const Tensor& mean,
                                                    const Tensor& entropy, const Tensor& head,
                                                    const Maybe& targets, const Maybe& regularized,
                                                    const Maybe& scales,
                                                    const std::vector<double>& fixed,
                                                    double temperature, int64_t entropy_top_k,
                                                    double softcap, int64_t chunk_bytes) {
  if (fixed.size() != 3) throw ArgumentError("head_losses_cached: expected three fixed scales");
  return head_losses_cached(
      {hidden, mean, entropy, head, targets, regularized, scales},
      {fixed[0], fixed[1], fixed[2], temperature, 1.0, softcap, entropy_top_k, chunk_bytes});
}

std::tuple<Tensor, Tensor> bound_teacher_summary(const Tensor& teacher, const Maybe& teacher_head,
                                                 const Tensor& head, double temperature,
                                                 double softcap, int64_t chunk_bytes) {
  return teacher_summary(teacher, teacher_head, head,
                         {0, 0, 0, temperature, 1.0, softcap, 0, chunk_bytes});
}

Tensor bound_head_rows(const Tensor& hidden, const Maybe& teacher, const Tensor& head,
                       const Maybe& teacher_head, const Maybe& targets, double temperature,
                       double entropy_temperature, int64_t entropy_top_k, double softcap,
                       int64_t chunk_bytes) {
  const Maybe all;
  return head_rows(
      {hidden, teacher, head, teacher_head, targets, all, all},
      {0, 0, 0, temperature, entropy_temperature, softcap, entropy_top_k, chunk_bytes});
}

void bound_gram_add(Tensor g, const Tensor& a) {
  gram_add(g, a);
}

}  // namespace

void bind_losses(Module& m) {
  op(m, "qr", &qr, {"a"}, Grad::kYes);
  op(m, "eigh", &eigh, {"a"}, Grad::kYes);
  op(m, "svd", &svd, {"a"}, Grad::kYes);
  op(m, "singularValues", &singular_values, {"a"}, Grad::kYes);
  op(m, "randomizedSvds", &randomized_svds, {"matrices", "ranks", "niter", "oversample", "seeds"},
     Grad::kNone);
  op(m, "gram", &gram, {"a"}, Grad::kNone);
  op(m, "gramAdd", &bound_gram_add, {"g", "a"}, Grad::kNone);
  op(m, "gramSpectrum", &gram_spectrum, {"m", "g"}, Grad::kNone);
  op(m, "headLosses", &bound_head_losses,
     {"hidden", "teacher", "head", "teacherHead", "targets", "regularized", "scales", "fixedScales",
      "temperature", "entropyTopK", "softcap", "chunkBytes"},
     Grad::kYes);
  op(m, "headLossesCached", &bound_head_losses_cached,
     {"hidden", "mean", "entropy", "head", "targets", "regularized", "scales", "fixedScales",
      "temperature", "entropyTopK", "softcap", "chunkBytes"},
     Grad::kYes);
  op(m, "teacherSummary", &bound_teacher_summary,
     {"teacher", "teacherHead", "head", "temperature", "softcap", "chunkBytes"}, Grad::kNone);
  op(m, "headRows", &bound_head_rows,
     {"hidden", "teacher", "head", "teacherHead", "targets", "temperature", "entropyTemperature",
      "entropyTopK", "softcap", "chunkBytes"},
     Grad::kNone);
  op(m, "svdRatioGram", &svd_ratio_gram, {"hidden", "gram", "k", "norm"}, Grad::kYes);
  op(m, "svdRatio", &svd_ratio, {"hidden", "head", "k", "norm", "softcap", "chunkBytes"},
     Grad::kYes);
}

}  // namespace balora::binding
