// The fused head losses. M rows (the selected positions), C channels, V vocabulary.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/operands/head.h"
#include "tensor/tensor.h"

namespace balora {

// The tensors of a balora_teacher, or their slots in a launch: those of one of its forms, or none.
template <typename T>
struct TeacherOf {
  T hidden, head;  // of a live one, which get no gradient
  T mean, entropy, log_probability;
};
using Teacher = TeacherOf<std::optional<Tensor>>;

struct HeadInputs {
  Tensor hidden;  // (M,C), after the final norm
  Teacher teacher = {};
  Tensor head;                         // (V,C); frozen beside a summary of the teacher
  std::optional<Tensor> targets = {};  // (M) i32, -100: no task term; none: no row has one
  // (M) u8, 0: the task term alone; none: all rows have all.
  std::optional<Tensor> regularized = {};
  std::optional<Tensor> scales = {};   // (3) f64, times the options' scales; none: ones
  std::optional<Tensor> factors = {};  // (M) f64, of each row in the loss; none: ones
};

// -> loss () f64 = the sum over rows of factor (task_scale CE + consistency_scale T^2 KL -
// diversity_scale entropy), sums (4) f64 = the terms' sums over rows, without scales and factors,
// and the loss; and where it is asked for each row's log-probability of its target (M) f64, 0
// without one. Loss and log-probabilities are differentiable in hidden and head. Softmax, sums:
// kernels/cpu/head/head.h
std::vector<Tensor> head_losses(const HeadInputs& inputs, const HeadOptions& options,
                                bool log_probabilities);

// The summary of a teacher: mean, entropy and, with targets (M), log_probability.
std::vector<Tensor> teacher_summary(const Tensor& teacher,
                                    const std::optional<Tensor>& teacher_head, const Tensor& head,
                                    const std::optional<Tensor>& targets,
                                    const HeadOptions& options);

// The terms of each row, (M,3) f64, without gradients: for evaluation and the adaptive schedule.
Tensor head_rows(const HeadInputs& inputs, const HeadOptions& options);

// -(sum of the k largest singular values of hidden head^T) / norm, () f64; 0 for zero logits. norm:
// frobenius or nuclear. By gram = head^T head (C,C) f64: the head is linear and frozen.
Tensor svd_ratio_gram(const Tensor& hidden, const Tensor& gram, int64_t k, const std::string& norm);
// The same by tiles of the logits: the head may want a gradient, the logits may be soft-capped
// (softcap > 0).
Tensor svd_ratio(const Tensor& hidden, const Tensor& head, int64_t k, const std::string& norm,
                 double softcap, int64_t chunk_bytes);

}  // namespace balora
