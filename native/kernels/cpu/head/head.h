// One row of the fused head losses: the statistics of its student logits z (V) and teacher logits y
// (V), and the gradient written over z. Elements in f32 (f64 for f64), sums over the vocabulary in
// f64 from blocks of 512: plain f32 sums read the cross-entropy 1e-5 low at V = 49152. Where
// nothing but their exponentials is asked for later, the statistics leave these in the place of the
// logits (passes.h): without soft-capping and an entropy over all of V, at T = 1 or 2.
#pragma once
#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "kernels/cpu/products/gemm.h"
#include "kernels/kernel_table.h"
#include "kernels/operands/head.h"
#include "kernels/shared/divergence.h"
#include "tensor/dtype.h"

namespace balora {
namespace head {

constexpr int64_t kBlock = 512;

inline int64_t blocks_of(int64_t n) {
  return (n + kBlock - 1) / kBlock;
}

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

// dz = task p + student (x - q) + gap q of kept exponentials x and q, p = x, or x^2 if
// `squares`; task p + student x without q. gap = student - teacher: x = q gives exactly 0 even
// with fused adds.
template <typename A>
struct KeptGradient {
  A task, student, gap;
  bool squares;
};

// The dense part of dz from logits: each coefficient holds the reciprocal of its sum; zero leaves
// its exponentials out.
template <typename A>
struct DenseGradient {
  A shift, task;
  A scale, student, teacher, teacher_shift, log_ratio;  // DivergenceSums has the last
  A diversity, entropy_scale, log_sum, entropy;
  A inverse_cap;  // 0: no soft-capping
};

}  // namespace head

// The results of a row's first pass, for the second.
struct HeadRow {
  // The row's terms, unscaled; consistency includes T^2.
  double task = 0, consistency = 0, entropy = 0;
  // Largest logit and the sum of e^(logit - largest), at temperature 1, T and Te: exact
  // differences, so that the gradient does not inherit the rounding of a log-sum-exp stored in f32.
  double shift = 0, sum = 1;
  bool squares = false;  // kept exponentials are at T = 2, and those at 1 their squares
  double shift_teacher = 0;
  DivergenceSums pair = {.student = 1, .teacher = 1};
  double shift_entropy = 0, log_sum_entropy = 0;

  void store_terms(double* terms) const {
    terms[BALORA_HEAD_TASK] = task;
    terms[BALORA_HEAD_CONSISTENCY] = consistency;
    terms[BALORA_HEAD_ENTROPY] = entropy;
  }
  // The sums of kept exponentials.
  void set_sums(const head::KeptSums& sums) {
    pair = sums.pair;
    sum = squares ? sums.squares : pair.student;
  }
};

// A row's teacher, which the row is compared with but for NONE. Of a summary the entropy of q, and
// h sum_j q_j w_j = sum_j q_j z_j but for the scale of logits.
struct TeacherRow {
  balora_teacher_kind kind = BALORA_TEACHER_NONE;
  double entropy = 0, mean_logit = 0;
};

// The terms that a row is in.
struct RowRole {
  int64_t target = -1;      // < 0: no task term
  bool regularized = true;  // false: the row is in the task term alone
  TeacherRow teacher = {};
  double factor = 1;  // of dz

  bool compared() const { return teacher.kind != BALORA_TEACHER_NONE; }
};

// Operands of the two passes over a row.
template <typename A>
struct RowOperands {
  A* z;            // student logits
  A* y = nullptr;  // of a live teacher
  RowRole role = {};
};

// One of the logits among which the K largest are, and the teacher's beside it.
template <typename A>
struct TopCandidate {
  int64_t index;
  A value, teacher;
};

// Whether a logit comes before another in a top-K: the larger, of equal ones the first.
template <typename A>
bool ranks_before(A a, int64_t a_index, A b, int64_t b_index) {
  return a > b || (a == b && a_index < b_index);
}

constexpr int64_t kInsertionLimit = 64;  // above, a selection over an index array is quicker

template <typename A>
class HeadRows {
 public:
  HeadRows(const HeadOptions& options, int64_t vocabulary);

  // Whether the statistics leave exponentials in the place of logits.
  static bool keeps(const HeadOptions& options, int64_t vocabulary);

  // Keeps what a gradient() that follows reads: the row's top-K, and exponentials in z and y.
  HeadRow statistics(const RowOperands<A>& operands);

  // z becomes d(loss)/d(h w) for the row of the last statistics(); without
  // the part of a teacher's summary. With `rounded`, of f32 alone, as bf16 in the first half of the
  // row's own place, formed in f32.
  void gradient(const RowOperands<A>& operands, const HeadRow& row, bool rounded);

  // q = softmax(y / Te) of a row whose entropy over all of V was taken; may be y.
  void probabilities(const A* y, const HeadRow& row, A* q) const;

  // Products h w -> logits, where they are scaled or soft-capped.
  void cap(A* logits) const;

  // The steps of both, for rows whose logits lie in another order (x86/by_token.cc). begin() says
  // which sums a row takes.
  HeadRow begin(const RowRole& role) const;
  bool has_entropy(const RowRole& role) const;
  // The row's top-K, out of candidates that change places. Fewer than K, as beside NaN: all NaN.
  void choose_top_k(std::span<TopCandidate<A>> candidates);
  // Entropy of the row's top-K.
  void top_entropy(HeadRow& row) const;
  // The terms of a row from its sums.
  void finish(const RowRole& role, double target_logit, HeadRow& row) const;
  head::KeptGradient<A> kept_gradient(const RowRole& role, const HeadRow& row) const;
  // The factor by which the gradient takes off an exponential of the teacher.
  A teacher_factor(const RowRole& role, const HeadRow& row) const;

  // An element of dz with a part of its own, the target or one of the top K: formed apart from the
  // row, so that it is rounded once.
  struct Place {
    int64_t index;
    A added, value;
  };
  // The row's places; kept(index) = {z, y}, exponentials, or logits where none are kept.
  template <typename Kept>
  std::span<const Place> form_places(const RowRole& role, const HeadRow& row, const Kept& kept);

 private:
  static bool dense_entropy(const HeadOptions& options, int64_t vocabulary) {
    return options.entropy_top_k == 0 || options.entropy_top_k >= vocabulary;
  }
  bool dense_entropy() const { return dense_entropy(options_, vocabulary_); }
  void compute_entropy(const A* z, A max, int64_t count, HeadRow& row) const;
  void find_top_k(const A* z);
  void offer_top_k(const A* z, int64_t index);
  void keep(const RowOperands<A>& operands, HeadRow& row) const;
  void compute_sums(const RowOperands<A>& operands, HeadRow& row) const;

  using DenseGradient = head::DenseGradient<A>;
  struct Parts {
    DenseGradient dense;
    head::KeptGradient<A> kept;
  };
  Parts parts_of(const RowRole& role, const HeadRow& row) const;
  void dense_part(A* z, const A* y, int64_t n, const Parts& parts, bool rounded) const;
  void find_places(const RowRole& role, const HeadRow& row);
  void value_places(const RowRole& role, const Parts& parts);

  HeadOptions options_;
  int64_t vocabulary_, top_k_;
  bool keeps_;                // exponentials
  std::vector<A> maxima_;     // of the row's blocks
  std::vector<int64_t> top_;  // indices of the K largest logits, largest first, ties by index
  std::vector<A> top_values_;
  std::vector<int32_t> found_;  // candidates for them in a block
  std::vector<Place> places_;
  std::vector<A> place_z_, place_y_;
};

template <typename A>
template <typename Kept>
std::span<const typename HeadRows<A>::Place> HeadRows<A>::form_places(const RowRole& role,
                                                                      const HeadRow& row,
                                                                      const Kept& kept) {
  find_places(role, row);
  place_z_.resize(places_.size()), place_y_.resize(places_.size());
  for (size_t i = 0; i < places_.size(); ++i) {
    std::tie(place_z_[i], place_y_[i]) = kept(places_[i].index);
  }
  value_places(role, parts_of(role, row));
  return places_;
}

// One call of the head's losses, as both ways through it see it. A is the type of logits.
template <typename A>
class HeadCall {
 public:
  HeadCall(Context* ctx, const balora_head_losses& operands);

  Context* ctx;
  const balora_head_losses& o;
  HeadOptions options;  // with all scales multiplied, and that of logits never 0
  double* terms;        // (M,3), by row

  bool wants_gradient() const { return o.dh || o.dw; }
  RowRole role_of(int64_t row) const;
  TeacherRow teacher_of(int64_t row) const;

  struct Range {
    int64_t begin, end;
  };
  // A row's factor in the loss.
  double factor_of(int64_t row) const;
  // Whether a teacher's summary has a part of its own in dh.
  bool is_summarized() const { return o.teacher.kind == BALORA_TEACHER_SUMMARY; }
  // Rows of dh = sums (rows,C), which lose that part.
  void store_hidden(Range rows, A* sums) const;
  // Rows of dw, tokens, += dz^T h for these rows of h.
  void add_head(Range rows, Range tokens, const GemmInput& dz) const;
  // The sums of all rows' terms, in order.
  void store_sums() const;

 private:
  std::vector<double> own_terms_;
};

namespace x86 {

// The losses by token (by_token.cc), on AMX; the most rows of a chunk of theirs, 0 where a call is
// not computed so.
int64_t rows_by_token(const balora_head_losses& o);
bool takes_by_token(const balora_head_losses& o);
void head_losses_by_token(Context* ctx, const balora_head_losses& o);

}  // namespace x86
}  // namespace balora
