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
#include <tuple>
#include <utility>

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
void HeadRows<A>::cap(A* products) const {
  const double scale = options_.logit_scale != 0 ? options_.logit_scale : 1;
  if (scale == 1 && !(options_.softcap > 0)) return;
  at_level<&head::cap_row<A>>(products, vocabulary_, static_cast<A>(scale),
                              static_cast<A>(options_.softcap));
}

// At least K logits are no smaller than the K-th largest of the blocks' maxima, so only those that
// are not smaller are looked at, in blocks that hold such.
template <typename A>
void HeadRows<A>::find_top_k(const A* z, HeadRow& row) {
  const auto k = static_cast<size_t>(top_k_);
  A least = -std::numeric_limits<A>::infinity();
  if (maxima_.size() >= k) {
    top_values_ = maxima_;
    const auto at = top_values_.begin() + top_k_ - 1;
    std::nth_element(top_values_.begin(), at, top_values_.end(), std::greater<A>());
    least = *at;
  }
  candidates_.clear();
  found_.resize(static_cast<size_t>(head::kBlock));
  for (size_t block = 0; block < maxima_.size(); ++block) {
    if (maxima_[block] < least) continue;
    const int64_t first = static_cast<int64_t>(block) * head::kBlock;
    const int64_t count = at_level<&head::find_candidates<A>>(
        z + first, std::min(vocabulary_ - first, head::kBlock), least, found_.data());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = first + found_[static_cast<size_t>(i)];
      candidates_.push_back({at, z[at], A(0)});
    }
    if (candidates_.size() < 4 * k) continue;
    select_top_k(candidates_);
    candidates_.resize(k);
    least = std::max(least, candidates_.back().value);
  }
  top_entropy(candidates_, row);
}

// The K largest come first, the last of them at its place.
template <typename A>
void HeadRows<A>::select_top_k(std::span<TopCandidate<A>> candidates) const {
  std::nth_element(candidates.begin(), candidates.begin() + top_k_ - 1, candidates.end());
}

template <typename A>
void HeadRows<A>::top_entropy(std::span<TopCandidate<A>> candidates, HeadRow& row) {
  const auto k = static_cast<size_t>(top_k_);
  top_.resize(k), top_values_.resize(k);
  const bool complete = candidates.size() >= k;
  if (complete) {
    select_top_k(candidates);
    std::sort(candidates.begin(), candidates.begin() + top_k_);
  }
  for (size_t i = 0; i < k; ++i) {
    top_[i] = complete ? candidates[i].index : static_cast<int64_t>(i);
    top_values_[i] = complete ? candidates[i].value : std::numeric_limits<A>::quiet_NaN();
  }
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

// The row's sums. With kKeep their exponentials are left in z and y.
template <typename A>
template <bool kKeep>
void HeadRows<A>::compute_sums(const RowOperands<A>& operands, HeadRow& row) const {
  const auto& [z, y, role] = operands;
  const auto shifted_by = [&](A scale) {
    return head::PairShifts<A>{static_cast<A>(row.shift), static_cast<A>(row.shift_teacher), scale};
  };
  // Reads the operands' fields: clang 16 refuses z and y of the binding in a loop of OpenMP.
  const auto of_student = [&](A scale) {
    return at_level<&head::exp_sums<false, kKeep, A>>(operands.z, operands.y, vocabulary_,
                                                      shifted_by(scale));
  };
  const auto scale = static_cast<A>(role.compared() ? 1 / options_.temperature : 1);
  head::PairShifts<A> shifts = shifted_by(scale);
  if constexpr (kKeep) {
    row.set_sums(y ? at_level<&head::exp_sums<true, true, A>>(z, y, vocabulary_, shifts)
                   : of_student(scale));
  } else {
    if (role.target >= 0) row.sum = of_student(A(1)).pair.student;
    if (role.teacher.kind == BALORA_TEACHER_SUMMARY) row.pair = of_student(scale).pair;
    if (!y) return;
    shifts.y = at_level<&head::teacher_shift<A>>(z, y, vocabulary_, shifts);
    row.shift_teacher = static_cast<double>(shifts.y);
    row.pair = at_level<&head::exp_sums<true, false, A>>(z, y, vocabulary_, shifts).pair;
  }
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
  cap(z);
  if (y) cap(y);
  row.shift = static_cast<double>(at_level<&head::block_maxima<A>>(z, vocabulary_, maxima_.data()));
  if (y) row.shift_teacher = static_cast<double>(at_level<&head::row_max<A>>(y, vocabulary_));
  if (has_entropy(role)) {
    if (dense_entropy()) {
      compute_entropy(z, static_cast<A>(row.shift), vocabulary_, row);
    } else {
      find_top_k(z, row);
    }
  }
  const double target_logit = role.target >= 0 ? static_cast<double>(z[role.target]) : 0;
  if (keeps_) {
    compute_sums<true>(operands, row);
  } else {
    compute_sums<false>(operands, row);
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
void HeadRows<A>::probabilities(A* y, const HeadRow& row, bool paired) {
  place_z_.resize(static_cast<size_t>(paired ? vocabulary_ : 0));
  A* const q = paired ? place_z_.data() : y;
  at_level<&head::scaled_exp<A>>(y, vocabulary_, static_cast<A>(row.shift_entropy),
                                 static_cast<A>(1 / options_.entropy_temperature),
                                 static_cast<A>(std::exp(-row.log_sum_entropy)), q);
  if (!paired) return;
  auto* const high = reinterpret_cast<bf16*>(y);
  convert_row(q, high, vocabulary_);
  for (int64_t i = 0; i < vocabulary_; ++i) {
    high[vocabulary_ + i] = store<bf16>(static_cast<float>(q[i]) - to_float(high[i]));
  }
}

template <typename A>
head::Gradient<A> HeadRows<A>::gradient_of(const RowRole& role, const HeadRow& row) const {
  head::Gradient<A> g = {.kept = keeps_, .squares = row.squares};
  g.shift = static_cast<A>(row.shift);
  if (role.target >= 0) g.task = static_cast<A>(role.factor * options_.task_scale / row.sum);
  g.scale = static_cast<A>(1 / options_.temperature);
  g.teacher_shift = static_cast<A>(row.shift_teacher);
  const double scale = role.factor * options_.consistency_scale * options_.temperature;
  if (role.compared()) g.student = static_cast<A>(scale / row.pair.student);
  if (role.teacher.kind == BALORA_TEACHER_LIVE) {
    g.teacher = static_cast<A>(scale / row.pair.teacher);
    g.gap = static_cast<A>(scale / row.pair.student - scale / row.pair.teacher);
    g.log_ratio = static_cast<A>(row.pair.log_ratio());
  }
  if (has_entropy(role) && dense_entropy()) g.diversity = static_cast<A>(diversity_of(role));
  g.entropy_scale = static_cast<A>(1 / options_.entropy_temperature);
  g.log_sum = static_cast<A>(row.log_sum_entropy);
  g.entropy = static_cast<A>(row.entropy);
  if (options_.softcap > 0) g.inverse_cap = static_cast<A>(1 / options_.softcap);
  return g;
}

// ds / Te of the formulas above.
template <typename A>
double HeadRows<A>::diversity_of(const RowRole& role) const {
  return role.factor * options_.diversity_scale / options_.entropy_temperature;
}

template <typename A>
auto HeadRows<A>::form_places(const RowRole& role, const HeadRow& row,
                              const ReadKept& kept) -> std::span<const Place> {
  places_.clear();
  const double diversity = diversity_of(role);
  if (has_entropy(role) && !dense_entropy() && diversity != 0) {
    for (size_t i = 0; i < top_.size(); ++i) {
      const double value = static_cast<double>(top_values_[i]);
      const double log_pi =
          (value - row.shift_entropy) / options_.entropy_temperature - row.log_sum_entropy;
      const double added = diversity * std::exp(log_pi) * (log_pi + row.entropy);
      places_.push_back({top_[i], static_cast<A>(added)});
    }
  }
  if (role.target >= 0) {
    auto at = std::find_if(places_.begin(), places_.end(),
                           [&](const Place& place) { return place.index == role.target; });
    if (at == places_.end()) at = places_.insert(at, {role.target, A(0)});
    at->value -= static_cast<A>(role.factor * options_.task_scale);
  }
  const head::Gradient<A> gradient = gradient_of(role, row);
  const bool live = role.teacher.kind == BALORA_TEACHER_LIVE;
  place_z_.resize(places_.size()), place_y_.resize(places_.size());
  for (size_t i = 0; i < places_.size(); ++i) {
    std::tie(place_z_[i], place_y_[i]) = kept(places_[i].index);
    // A logit, since no exponential is kept beside a cap.
    const A capped = place_z_[i] * gradient.inverse_cap;
    places_[i].value *= A(1) - capped * capped;
  }
  at_level<&head::dense_gradient<A, A>>(place_z_.data(), live ? place_y_.data() : nullptr,
                                        std::ssize(places_), gradient, place_z_.data());
  for (size_t i = 0; i < places_.size(); ++i) places_[i].value += place_z_[i];
  return places_;
}

template <typename A>
template <typename Out>
void HeadRows<A>::gradient(const RowOperands<A>& operands, const HeadRow& row) {
  const auto& [z, y, role] = operands;
  const auto places = form_places(role, row, [z = z, y = y](int64_t index) {
    return std::pair(z[index], y ? y[index] : A(0));
  });
  auto* const out = reinterpret_cast<Out*>(z);
  at_level<&head::dense_gradient<A, Out>>(z, y, vocabulary_, gradient_of(role, row), out);
  for (const Place& place : places) out[place.index] = store<Out>(place.value);
}

template class HeadRows<float>;
template class HeadRows<double>;
template void HeadRows<float>::gradient<float>(const RowOperands<float>&, const HeadRow&);
template void HeadRows<float>::gradient<bf16>(const RowOperands<float>&, const HeadRow&);
template void HeadRows<double>::gradient<double>(const RowOperands<double>&, const HeadRow&);

}  // namespace balora
