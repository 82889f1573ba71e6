// Formulas (p, q softmax of z/T and y/T, pi softmax of z/Te over the K largest, H its entropy):
//   task = lse(z) - z_c
//   consistency = T^2 KL(q || p), as kernels/shared/divergence.h has it, exactly 0 where y == z
//   entropy = H
//   dz = ts (softmax(z) - e_c) + cs T (p - q) + ds pi (log pi + H) / Te
// and under soft-capping dz times 1 - (z/cap)^2, with ts, cs and ds the scales of the three terms,
// each times the row's factor, which has the scale of logits in it.
#include "kernels/cpu/head/head.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <type_traits>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/passes.h"

namespace balora {

template <typename A>
bool HeadRows<A>::keeps(const HeadOptions& options, int64_t vocabulary) {
  return !(options.softcap > 0) && !dense_entropy(options, vocabulary) &&
         (options.temperature == 1 || options.temperature == 2);
}

template <typename A>
HeadRows<A>::HeadRows(const HeadOptions& options, int64_t vocabulary)
    : options_(options),
      vocabulary_(vocabulary),
      top_k_(std::max<int64_t>(options.entropy_top_k, 0)),
      keeps_(keeps(options, vocabulary)),
      maxima_(static_cast<size_t>(head::blocks_of(vocabulary))) {}

template <typename A>
void HeadRows<A>::cap(A* logits) const {
  if (options_.logit_scale != 0 && options_.logit_scale != 1) {
    at_level<&head::scale_row<A>>(logits, vocabulary_, static_cast<A>(options_.logit_scale));
  }
  if (options_.softcap > 0) {
    at_level<&head::cap_row<A>>(logits, vocabulary_, static_cast<A>(options_.softcap));
  }
}

// A logit enters only if it is strictly larger than the last, so equal ones keep the lower index.
template <typename A>
void HeadRows<A>::offer_top_k(const A* z, int64_t index) {
  if (top_.size() == static_cast<size_t>(top_k_)) {
    if (!(z[index] > z[top_.back()])) return;
    top_.pop_back();
  }
  auto place = top_.end();
  while (place != top_.begin() && z[index] > z[*(place - 1)]) --place;
  top_.insert(place, index);
}

// Keeps the K best in order. At least K logits are no smaller than the K-th largest of the blocks'
// maxima, so only those that are not smaller are looked at, in blocks that hold such.
template <typename A>
void HeadRows<A>::find_top_k(const A* z) {
  const size_t k = static_cast<size_t>(top_k_);
  if (top_k_ > kInsertionLimit) {
    top_.resize(static_cast<size_t>(vocabulary_));
    std::iota(top_.begin(), top_.end(), int64_t{0});
    // NaNs first, as in topk.cc: to compare as equal to nothing is no order.
    const auto above = [](A a, A b) { return a > b || (a != a && b == b); };
    const auto before = [z, above](int64_t a, int64_t b) {
      return above(z[a], z[b]) || (!above(z[b], z[a]) && a < b);
    };
    std::nth_element(top_.begin(), top_.begin() + top_k_ - 1, top_.end(), before);
    top_.resize(k);
    std::sort(top_.begin(), top_.end(), before);
  } else {
    A least = -std::numeric_limits<A>::infinity();
    if (maxima_.size() >= k) {
      top_values_ = maxima_;
      const auto at = top_values_.begin() + top_k_ - 1;
      std::nth_element(top_values_.begin(), at, top_values_.end(), std::greater<A>());
      least = *at;
    }
    top_.clear();
    found_.resize(static_cast<size_t>(head::kBlock));
    for (size_t block = 0; block < maxima_.size(); ++block) {
      if (!(maxima_[block] >= least)) continue;
      const int64_t first = static_cast<int64_t>(block) * head::kBlock;
      const int64_t count = at_level<&head::find_at_least<A>>(
          z + first, std::min(vocabulary_ - first, head::kBlock), least, found_.data());
      for (int64_t i = 0; i < count; ++i) offer_top_k(z, first + found_[static_cast<size_t>(i)]);
    }
    // A NaN is not at least anything: a row with many of them has too few candidates.
    if (top_.size() < k) {
      top_.clear();
      for (int64_t i = 0; i < vocabulary_; ++i) offer_top_k(z, i);
    }
  }
  top_values_.resize(k);
  for (size_t i = 0; i < k; ++i) top_values_[i] = z[top_[i]];
}

template <typename A>
void HeadRows<A>::choose_top_k(std::span<TopCandidate<A>> candidates) {
  const auto before = [](const TopCandidate<A>& a, const TopCandidate<A>& b) {
    return ranks_before(a.value, a.index, b.value, b.index);
  };
  const auto k = static_cast<size_t>(top_k_);
  const size_t count = std::min(k, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(count),
                    candidates.end(), before);
  top_.resize(k), top_values_.resize(k);
  const bool complete = count == k;
  for (size_t i = 0; i < k; ++i) {
    top_[i] = complete ? candidates[i].index : static_cast<int64_t>(i);
    top_values_[i] = complete ? candidates[i].value : std::numeric_limits<A>::quiet_NaN();
  }
}

template <typename A>
void HeadRows<A>::top_entropy(HeadRow& row) const {
  compute_entropy(top_values_.data(), at_level<&head::row_max<A>>(top_values_.data(), top_k_),
                  top_k_, row);
}

// The entropy of the softmax of `count` logits, of which the largest is `max`.
template <typename A>
void HeadRows<A>::compute_entropy(const A* z, A max, int64_t count, HeadRow& row) const {
  const A scale = static_cast<A>(1 / options_.entropy_temperature);
  const head::WeightedSum sums = at_level<&head::entropy_sums<A>>(z, count, max, scale);
  const double log_sum = std::log(sums.weight);
  row.entropy = log_sum - sums.value / sums.weight * static_cast<double>(scale);
  row.shift_entropy = static_cast<double>(max);
  row.log_sum_entropy = log_sum;
}

// The row's sums, with their exponentials left in z and y.
template <typename A>
void HeadRows<A>::keep(const RowOperands<A>& operands, HeadRow& row) const {
  const A scale = operands.role.compared() ? static_cast<A>(1 / options_.temperature) : A(1);
  const head::PairShifts<A> shifts = {static_cast<A>(row.shift), static_cast<A>(row.shift_teacher),
                                      scale};
  row.set_sums(at_level<&head::keep_exponentials<A>>(operands.z, operands.y, vocabulary_, shifts));
}

// The row's sums.
template <typename A>
void HeadRows<A>::compute_sums(const RowOperands<A>& operands, HeadRow& row) const {
  A *const z = operands.z, *const y = operands.y;
  const RowRole& role = operands.role;
  const A scale = static_cast<A>(1 / options_.temperature);
  const A shift = static_cast<A>(row.shift);
  const auto sum = [&](A by) {
    return at_level<&head::student_sums<false, A>>(z, vocabulary_, shift, by).pair.student;
  };
  if (role.target >= 0) row.sum = sum(A(1));
  if (role.teacher.kind == BALORA_TEACHER_SUMMARY) row.pair.student = sum(scale);
  if (!y) return;
  head::PairShifts<A> shifts = {shift, static_cast<A>(row.shift_teacher), scale};
  shifts.y = at_level<&head::teacher_shift<A>>(z, y, vocabulary_, shifts);
  row.shift_teacher = static_cast<double>(shifts.y);
  row.pair = at_level<&head::pair_sums<false, A>>(z, y, vocabulary_, shifts).pair;
}

template <typename A>
HeadRow HeadRows<A>::begin(const RowRole& role) const {
  HeadRow row;
  row.squares = keeps_ && role.compared() && options_.temperature == 2;
  return row;
}

template <typename A>
bool HeadRows<A>::has_entropy(const RowRole& role) const {
  return role.regularized && options_.entropy_top_k >= 0;
}

template <typename A>
HeadRow HeadRows<A>::statistics(const RowOperands<A>& operands) {
  const auto& [z, y, role] = operands;
  HeadRow row = begin(role);
  row.shift = static_cast<double>(at_level<&head::block_maxima<A>>(z, vocabulary_, maxima_.data()));
  if (y) row.shift_teacher = static_cast<double>(at_level<&head::row_max<A>>(y, vocabulary_));
  if (has_entropy(role)) {
    if (dense_entropy()) {
      compute_entropy(z, static_cast<A>(row.shift), vocabulary_, row);
    } else {
      find_top_k(z);
      top_entropy(row);
    }
  }
  const double target_logit = role.target >= 0 ? static_cast<double>(z[role.target]) : 0;
  if (keeps_) {
    keep(operands, row);
  } else {
    compute_sums(operands, row);
  }
  finish(role, target_logit, row);
  return row;
}

template <typename A>
void HeadRows<A>::finish(const RowRole& role, double target_logit, HeadRow& row) const {
  const double temperature = options_.temperature;
  if (role.target >= 0) row.task = row.shift + std::log(row.sum) - target_logit;
  const TeacherRow& teacher = role.teacher;
  if (teacher.kind == BALORA_TEACHER_SUMMARY) {
    const double lse = row.shift / temperature + std::log(row.pair.student);
    row.consistency = temperature * (temperature * (lse - teacher.entropy) - teacher.mean_logit);
  } else if (teacher.kind == BALORA_TEACHER_LIVE) {
    row.consistency = temperature * temperature * row.pair.divergence();
  }
}

template <typename A>
void HeadRows<A>::probabilities(const A* y, const HeadRow& row, A* q) const {
  at_level<&head::scaled_exp<A>>(y, vocabulary_, static_cast<A>(row.shift_entropy),
                                 static_cast<A>(1 / options_.entropy_temperature),
                                 static_cast<A>(std::exp(-row.log_sum_entropy)), q);
}

// The part of the gradient that all of V has, of logits or kept exponentials z and y.
template <typename A>
void HeadRows<A>::dense_part(A* z, const A* y, int64_t n, const Parts& parts, bool rounded) const {
  if (!keeps_) {
    at_level<&head::dense_gradient<A>>(z, y, n, parts.dense);
    if constexpr (std::is_same_v<A, float>) {
      if (rounded) convert_row(z, reinterpret_cast<bf16*>(z), n);
    }
    return;
  }
  if constexpr (std::is_same_v<A, float>) {
    if (rounded) {
      auto* const out = reinterpret_cast<bf16*>(z);
      return at_level<&head::kept_gradient<A, bf16>>(z, y, n, parts.kept, out);
    }
  }
  at_level<&head::kept_gradient<A, A>>(z, y, n, parts.kept, z);
}

template <typename A>
head::KeptGradient<A> HeadRows<A>::kept_gradient(const RowRole& role, const HeadRow& row) const {
  return parts_of(role, row).kept;
}

template <typename A>
A HeadRows<A>::teacher_factor(const RowRole& role, const HeadRow& row) const {
  if (role.teacher.kind != BALORA_TEACHER_LIVE) return A(0);
  return static_cast<A>(role.factor * options_.consistency_scale * options_.temperature /
                        row.pair.teacher);
}

template <typename A>
typename HeadRows<A>::Parts HeadRows<A>::parts_of(const RowRole& role, const HeadRow& row) const {
  Parts parts{};
  parts.kept.squares = row.squares;
  DenseGradient& g = parts.dense;
  g.inverse_cap = options_.softcap > 0 ? static_cast<A>(1 / options_.softcap) : A(0);
  g.shift = static_cast<A>(row.shift);
  if (role.target >= 0) g.task = static_cast<A>(role.factor * options_.task_scale / row.sum);
  g.scale = static_cast<A>(1 / options_.temperature);
  g.teacher_shift = static_cast<A>(row.shift_teacher);
  if (role.compared()) {
    const double scale = role.factor * options_.consistency_scale * options_.temperature;
    g.student = static_cast<A>(scale / row.pair.student);
    g.teacher = static_cast<A>(scale / row.pair.teacher);
    g.log_ratio = static_cast<A>(row.pair.log_ratio());
    parts.kept.student = g.student;
    parts.kept.gap = static_cast<A>(scale / row.pair.student - scale / row.pair.teacher);
  }
  parts.kept.task = g.task;
  if (has_entropy(role) && dense_entropy()) {
    g.diversity =
        static_cast<A>(role.factor * options_.diversity_scale / options_.entropy_temperature);
  }
  g.entropy_scale = static_cast<A>(1 / options_.entropy_temperature);
  g.log_sum = static_cast<A>(row.log_sum_entropy);
  g.entropy = static_cast<A>(row.entropy);
  return parts;
}

// Target and top K of the row, with what they add to the dense part.
template <typename A>
void HeadRows<A>::find_places(const RowRole& role, const HeadRow& row) {
  places_.clear();
  const double diversity = role.factor * options_.diversity_scale / options_.entropy_temperature;
  if (has_entropy(role) && !dense_entropy() && diversity != 0) {
    for (size_t i = 0; i < top_.size(); ++i) {
      const double value = static_cast<double>(top_values_[i]);
      const double log_pi =
          (value - row.shift_entropy) / options_.entropy_temperature - row.log_sum_entropy;
      const double added = diversity * std::exp(log_pi) * (log_pi + row.entropy);
      places_.push_back({top_[i], static_cast<A>(added), A(0)});
    }
  }
  const int64_t target = role.target;
  if (target < 0) return;
  const A task = static_cast<A>(role.factor * options_.task_scale);
  const auto same = std::find_if(places_.begin(), places_.end(),
                                 [&](const Place& place) { return place.index == target; });
  if (same == places_.end()) {
    places_.push_back({target, -task, A(0)});
  } else {
    same->added -= task;
  }
}

// The values of the places, from what is kept of their logits.
template <typename A>
void HeadRows<A>::value_places(const RowRole& role, const Parts& parts) {
  for (size_t i = 0; i < places_.size(); ++i) {
    // A logit, since no exponential is kept beside a cap.
    const A capped = place_z_[i] * parts.dense.inverse_cap;
    places_[i].added *= A(1) - capped * capped;
  }
  const bool live = role.teacher.kind == BALORA_TEACHER_LIVE;
  dense_part(place_z_.data(), live ? place_y_.data() : nullptr, std::ssize(places_), parts, false);
  for (size_t i = 0; i < places_.size(); ++i) places_[i].value = place_z_[i] + places_[i].added;
}

template <typename A>
void HeadRows<A>::gradient(const RowOperands<A>& operands, const HeadRow& row, bool rounded) {
  A* z = operands.z;
  const A* y = operands.y;
  const auto places = form_places(operands.role, row, [z, y](int64_t index) {
    return std::pair(z[index], y ? y[index] : A(0));
  });
  dense_part(z, y, vocabulary_, parts_of(operands.role, row), rounded);
  for (const Place& place : places) {
    if (rounded) {
      reinterpret_cast<bf16*>(z)[place.index] = to_bf16(static_cast<float>(place.value));
    } else {
      z[place.index] = place.value;
    }
  }
}

template class HeadRows<float>;
template class HeadRows<double>;

}  // namespace balora
