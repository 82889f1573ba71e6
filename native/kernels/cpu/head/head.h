// One row of the fused head losses: the statistics of its student logits z (V) and teacher logits y
// (V), and the gradient written over z. Elements in f32 (f64 for f64), sums over the vocabulary in
// f64 from blocks of 512: plain f32 sums read the cross-entropy 1e-5 low at V = 49152. Where
// nothing but their exponentials is asked for later, the statistics leave these in the place of the
// logits (passes.h): without soft-capping and an entropy over all of V, at T = 1 or 2.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/head/head_products.h"
#include "kernels/kernel_table.h"
#include "kernels/operands/head.h"
#include "kernels/shared/divergence.h"
#include "tensor/dtype.h"

namespace balora {
namespace head {

constexpr int64_t kBlock = 512;

struct WeightedSum {
  double weight, value;
};

// The largest of z and of y, or a shift of y near it, and 1 / T.
template <typename A>
struct PairShifts {
  A z, y, scale;
};

// Sums of x = e^((z - largest) / T), which is written over z, and of q, the same of y.
struct KeptSums {
  DivergenceSums pair;
  double squares = 0;  // of x
};

// The dense part of dz from logits, or from exponentials where these are kept: each coefficient
// holds the reciprocal of its sum; zero leaves its exponentials out.
template <typename A>
struct Gradient {
  bool kept, squares;  // squares: kept exponentials are at T = 2
  A shift, task;
  A scale, student, teacher, teacher_shift, log_ratio;  // DivergenceSums has the last
  A gap;                                                // student - teacher
  A diversity, entropy_scale, log_sum, entropy;
  A inverse_cap;  // 0: no soft-capping
};

}  // namespace head

// The results of a row's first pass, for the second.
struct HeadRow {
  double terms[BALORA_HEAD_TERMS] = {};  // unscaled; consistency includes T^2
  // Largest logit and the sum of e^(logit - largest), at temperature 1, T and Te: exact
  // differences, so that the gradient does not inherit the rounding of a log-sum-exp stored in f32.
  double shift = 0, sum = 1;
  double shift_teacher = 0;
  DivergenceSums pair = {.student = 1, .teacher = 1};
  double shift_entropy = 0, log_sum_entropy = 0;
  double target = 0, target_teacher = 0;  // logits of its target, if it has one

  // The sums of kept exponentials; see HeadRows::squares().
  void set_sums(const head::KeptSums& sums, bool squares) {
    pair = sums.pair;
    sum = squares ? sums.squares : pair.student;
  }
};

// The terms that a row is in. It is compared with a teacher but for NONE. Of a summary: the entropy
// of q, and h sum_j q_j w_j = sum_j q_j z_j but for the scale of logits.
struct RowRole {
  int64_t target = -1;      // < 0: no task term
  bool regularized = true;  // false: the row is in the task term alone
  balora_teacher_kind teacher = BALORA_TEACHER_NONE;
  double teacher_entropy = 0, mean_logit = 0;
  double factor = 1;  // of dz

  bool compared() const { return teacher != BALORA_TEACHER_NONE; }
  bool is_live() const { return teacher == BALORA_TEACHER_LIVE; }
};

// Operands of the two passes over a row.
template <typename A>
struct RowOperands {
  A* z;            // student logits
  A* y = nullptr;  // of a live teacher
  RowRole role = {};
};

// One of the logits among which the K largest are, and the teacher's beside it. The larger comes
// first, of equal ones that of the lower index; a NaN among them before all, as in topk.cc: to
// compare as equal to nothing is no order.
template <typename A>
struct TopCandidate {
  int64_t index;
  A value, teacher;

  bool operator<(const TopCandidate& other) const {
    const auto above = [](A a, A b) { return a > b || (a != a && b == b); };
    return above(value, other.value) || (!above(other.value, value) && index < other.index);
  }
};

template <typename A>
class HeadRows {
 public:
  HeadRows(const HeadOptions& options, int64_t vocabulary);

  // Whether the statistics leave exponentials in the place of logits.
  bool keeps() const { return keeps_; }

  // Makes logits of products h w, and keeps what a gradient() that follows reads: the row's top-K,
  // and exponentials in z and y.
  HeadRow statistics(const RowOperands<A>& operands);

  // z becomes d(loss)/d(h w) for the row of the last statistics(); without the part of a teacher's
  // summary. Of type A, or bf16 in the first half of the row's own place, formed in f32.
  template <typename Out>
  void gradient(const RowOperands<A>& operands, const HeadRow& row);

  // y becomes q = softmax(y / Te) of a row whose entropy over all of V was taken. Paired, as bf16:
  // the rounded values in the first half of its place, what is left of them in the second.
  void probabilities(A* y, const HeadRow& row, bool paired);

  // The steps of both, for rows whose logits lie in another order (x86/by_token.cc). Exponentials
  // take differences times scale_of(); squares(): of kept ones at T = 2, which are those at 1.
  A scale_of(const RowRole& role) const;
  bool squares(const RowRole& role) const;
  bool has_entropy(const RowRole& role) const;
  // The row's top-K, out of candidates that change places, and its entropy. Fewer than K, as beside
  // NaN: all NaN.
  void top_entropy(std::span<TopCandidate<A>> candidates, HeadRow& row);
  // The terms of a row from its sums.
  void finish(const RowRole& role, HeadRow& row) const;
  head::Gradient<A> gradient_of(const RowRole& role, const HeadRow& row) const;

  // An element of dz with a part of its own, the target or one of the top K: formed apart from the
  // row, so that it is rounded once.
  struct Place {
    int64_t index;
    A value;
  };
  std::span<const Place> form_places(const RowRole& role, const HeadRow& row);

 private:
  bool dense_entropy() const {
    return options_.entropy_top_k == 0 || options_.entropy_top_k >= vocabulary_;
  }
  void compute_entropy(const A* z, A max, int64_t count, HeadRow& row) const;
  void cap(A* products) const;
  void find_top_k(const RowOperands<A>& operands, HeadRow& row);
  void compute_sums(const RowOperands<A>& operands, HeadRow& row) const;

  HeadOptions options_;
  int64_t vocabulary_, top_k_;
  double diversity_;       // the scale over Te
  bool keeps_;             // exponentials
  std::vector<A> maxima_;  // of the row's blocks
  std::vector<TopCandidate<A>> top_, candidates_;
  std::vector<A> top_values_;
  std::vector<Place> places_;
  std::vector<A> place_z_, place_y_;
};

// One call of the head's losses, as both ways through it see it.
class HeadCall {
 public:
  HeadCall(Context* ctx, const balora_head_losses& operands);

  Context* ctx;
  const balora_head_losses& o;
  HeadOptions options;  // with all scales multiplied, and that of logits never 0
  double* terms;        // (M,3), by row

  bool wants_gradient() const { return o.dh || o.dw; }
  RowRole role_of(int64_t row) const;
  // Whether a teacher's summary has a part of its own in dh.
  bool is_summarized() const { return o.teacher.kind == BALORA_TEACHER_SUMMARY; }

  // Rows of dh = sums (rows,C), which lose that part. A is the type of logits.
  template <typename A>
  void store_hidden(HeadRange rows, A* sums) const;
  // The sums of all rows' terms, in order.
  void store_sums() const;

 private:
  // A row's factor in the loss.
  double factor_of(int64_t row) const {
    return o.factors ? static_cast<const double*>(o.factors->data)[row] : 1;
  }
  bool is_regularized(int64_t row) const {
    return !o.regularized || static_cast<const uint8_t*>(o.regularized->data)[row] != 0;
  }

  std::vector<double> own_terms_;
};

// The target of a row out of (M), or null, and a check of all.
int64_t target_of(const View* targets, int64_t row);
void check_targets(const View* targets, int64_t vocabulary);

// The losses by rows (by_rows.cc), of any operands.
void head_losses_by_rows(Context* ctx, const balora_head_losses& o);

namespace x86 {

// The losses by token (by_token.cc), on AMX; the most rows of a chunk of theirs, 0 where a call is
// not computed so.
int64_t rows_by_token(const balora_head_losses& o);
void head_losses_by_token(Context* ctx, const balora_head_losses& o);

}  // namespace x86
}  // namespace balora
