// One row of the fused head losses: the statistics of its student logits z (V) and teacher logits y
// (V), and the gradient written over z. Elements in f32 (f64 for f64), sums over the vocabulary in
// f64 from blocks of 256: plain f32 sums read the cross-entropy 1e-5 low at V = 49152.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/head_options.h"

namespace balora {

// What stays of a row between its two passes.
struct HeadRow {
  double task = 0, consistency = 0,
         entropy = 0;  // the row's terms, unscaled; consistency includes T^2
  // Largest logit and the sum of e^(logit - largest), at temperature 1, T and Te: exact
  // differences, so that the gradient does not inherit the rounding of a log-sum-exp stored in f32.
  double shift = 0, sum = 1, sum_student = 1;
  bool summarized = false;  // the teacher came as a TeacherRow
  double shift_teacher = 0, sum_teacher = 1;
  double shift_entropy = 0, log_sum_entropy = 0;
};

// A teacher's row without its logits: the entropy of q, and h sum_j q_j w_j = sum_j q_j z_j.
struct TeacherRow {
  double entropy = 0, mean_logit = 0;
};

template <typename A>
class HeadRows {
 public:
  HeadRows(const HeadOptions& options, int64_t vocabulary);

  // y and teacher null: no consistency term. target < 0: no task term. With `regularized` false the
  // row is in the task term alone. Keeps the row's top-K for a gradient() that follows.
  HeadRow statistics(const A* z, const A* y, int64_t target, bool regularized,
                     const TeacherRow* teacher = nullptr);

  // z becomes d(loss)/d(logits before soft-capping) for the row of the last statistics(); without
  // the teacher's part where it came as a TeacherRow.
  void gradient(A* z, const A* y, int64_t target, bool regularized, const HeadRow& row);

  // q = softmax(y / Te) of a row whose entropy was taken; may be y.
  void probabilities(const A* y, const HeadRow& row, A* q) const;

  // logits -> softcap * tanh(logits / softcap), when there is one.
  void cap(A* logits) const;

 private:
  bool dense_entropy() const { return options_.entropy_top_k == 0 || top_k_ >= vocabulary_; }
  void take_entropy(const A* z, HeadRow& row);
  void find_top_k(const A* z);

  HeadOptions options_;
  int64_t vocabulary_, top_k_;
  std::vector<int64_t> top_;  // indices of the K largest logits, largest first, ties by index
  std::vector<A> top_values_;
};

}  // namespace balora
