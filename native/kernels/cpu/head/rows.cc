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

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/passes.h"

namespace balora {

template <typename A>
HeadRows<A>::HeadRows(const HeadOptions& options, int64_t vocabulary)
    : options_(options),
      vocabulary_(vocabulary),
      top_k_(std::max<int64_t>(options.entropy_top_k, 0)),
      diversity_(options.diversity_scale / options.entropy_temperature),
      keeps_(!(options.softcap > 0) && !dense_entropy() &&
             (options.temperature == 1 || options.temperature == 2)),
      maxima_(static_cast<size_t>((vocabulary + head::kBlock - 1) / head::kBlock)) {}

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
void HeadRows<A>::find_top_k(const RowOperands<A>& operands, HeadRow& row) {
  const auto k = static_cast<size_t>(top_k_);
  A least = -std::numeric_limits<A>::infinity();
  if (maxima_.size() >= k) {
    top_values_ = maxima_;
    const auto at = top_values_.begin() + top_k_ - 1;
    std::nth_element(top_values_.begin(), at, top_values_.end(), std::greater<A>());
    least = *at;
  }
  candidates_.clear();
  for (size_t block = 0; block < maxima_.size(); ++block) {
    if (maxima_[block] < least) continue;
    const int64_t first = static_cast<int64_t>(block) * head::kBlock;
    at_level<&head::add_candidates<A>>(operands, first, std::min(vocabulary_, first + head::kBlock),
                                       least, candidates_);
    if (candidates_.size() < 4 * k) continue;
    std::nth_element(candidates_.begin(), candidates_.begin() + top_k_ - 1, candidates_.end());
    candidates_.resize(k);
    least = std::max(least, candidates_.back().value);
  }
  top_entropy(candidates_, row);
}

template <typename A>
void HeadRows<A>::top_entropy(std::span<TopCandidate<A>> candidates, HeadRow& row) {
  const auto k = static_cast<size_t>(top_k_);
  if (candidates.size() >= k) {
    const auto end = candidates.begin() + top_k_;
    std::nth_element(candidates.begin(), end - 1, candidates.end());
    std::sort(candidates.begin(), end);
    top_.assign(candidates.begin(), end);
  } else {
    constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();
    top_.clear();
    for (int64_t i = 0; i < top_k_; ++i) top_.push_back({i, kNaN, kNaN});
  }
  top_values_.resize(k);
  std::ranges::transform(top_, top_values_.begin(), &TopCandidate<A>::value);
  compute_entropy(top_values_.data(), top_values_[0], top_k_, row);
}

// The entropy of the softmax of `count` logits, of which the largest is `max`.
template <typename A>
void HeadRows<A>::compute_entropy(const A* z, A max, int64_t count, HeadRow& row) const {
  const A scale = static_cast<A>(1 / options_.entropy_temperature);
  const head::WeightedSum sums = at_level<&head::entropy_sums<A>>(z, count, max, scale);
  const double log_sum = std::log(sums.weight);
  row.terms[BALORA_HEAD_ENTROPY] = log_sum - sums.value / sums.weight * static_cast<double>(scale);
  row.shift_entropy = static_cast<double>(max);
  row.log_sum_entropy = log_sum;
}

// The row's sums; where exponentials are kept, these are left in z and y.
template <typename A>
void HeadRows<A>::compute_sums(const RowOperands<A>& operands, HeadRow& row) const {
  const auto& [z, y, role] = operands;
  head::PairShifts<A> shifts = {static_cast<A>(row.shift), static_cast<A>(row.shift_teacher),
                                scale_of(role)};
  if (keeps_) {
    const auto sums = y ? at_level<&head::exp_sums<true, true, A>>(z, y, vocabulary_, shifts)
                        : at_level<&head::exp_sums<false, true, A>>(z, y, vocabulary_, shifts);
    return row.set_sums(sums, squares(role));
  }
  // Reads the operands' fields: clang 16 refuses z and y of the binding in a loop of OpenMP.
  const auto of_student = [&](A scale) {
    const head::PairShifts<A> own = {shifts.z, shifts.y, scale};
    return at_level<&head::exp_sums<false, false, A>>(operands.z, operands.y, vocabulary_, own)
        .pair;
  };
  if (role.target >= 0) row.sum = of_student(A(1)).student;
  if (role.teacher == BALORA_TEACHER_SUMMARY) row.pair = of_student(shifts.scale);
  if (!y) return;
  shifts.y = at_level<&head::teacher_shift<A>>(z, y, vocabulary_, shifts);
  row.shift_teacher = static_cast<double>(shifts.y);
  row.pair = at_level<&head::exp_sums<true, false, A>>(z, y, vocabulary_, shifts).pair;
}

template <typename A>
A HeadRows<A>::scale_of(const RowRole& role) const {
  return static_cast<A>(role.compared() ? 1 / options_.temperature : 1);
}

template <typename A>
bool HeadRows<A>::squares(const RowRole& role) const {
  return keeps_ && role.compared() && options_.temperature == 2;
}

template <typename A>
bool HeadRows<A>::has_entropy(const RowRole& role) const {
  return role.regularized && options_.entropy_top_k >= 0;
}

template <typename A>
HeadRow HeadRows<A>::statistics(const RowOperands<A>& operands) {
  const auto& [z, y, role] = operands;
  HeadRow row;
  cap(z);
  if (y) cap(y);
  at_level<&head::block_maxima<A>>(z, vocabulary_, maxima_.data());
  row.shift = static_cast<double>(at_level<&head::row_max<A>>(maxima_.data(), std::ssize(maxima_)));
  if (y) row.shift_teacher = static_cast<double>(at_level<&head::row_max<A>>(y, vocabulary_));
  if (has_entropy(role)) {
    if (dense_entropy()) {
      compute_entropy(z, static_cast<A>(row.shift), vocabulary_, row);
    } else {
      find_top_k(operands, row);
    }
  }
  if (role.target >= 0) {
    row.target = static_cast<double>(z[role.target]);
    row.target_teacher = y ? static_cast<double>(y[role.target]) : 0;
  }
  compute_sums(operands, row);
  finish(role, row);
  return row;
}

template <typename A>
void HeadRows<A>::finish(const RowRole& role, HeadRow& row) const {
  const double temperature = options_.temperature;
  if (role.target >= 0) row.terms[BALORA_HEAD_TASK] = row.shift + std::log(row.sum) - row.target;
  if (role.teacher == BALORA_TEACHER_SUMMARY) {
    const double lse = row.shift / temperature + std::log(row.pair.student);
    row.terms[BALORA_HEAD_CONSISTENCY] =
        temperature * (temperature * (lse - role.teacher_entropy) - role.mean_logit);
  } else if (role.is_live()) {
    row.terms[BALORA_HEAD_CONSISTENCY] = temperature * temperature * row.pair.divergence();
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
  head::Gradient<A> g = {.kept = keeps_, .squares = squares(role)};
  g.shift = static_cast<A>(row.shift);
  if (role.target >= 0) g.task = static_cast<A>(role.factor * options_.task_scale / row.sum);
  g.scale = static_cast<A>(1 / options_.temperature);
  g.teacher_shift = static_cast<A>(row.shift_teacher);
  const double scale = role.factor * options_.consistency_scale * options_.temperature;
  const double student = role.compared() ? scale / row.pair.student : 0;
  const double teacher = role.is_live() ? scale / row.pair.teacher : 0;
  g.student = static_cast<A>(student), g.teacher = static_cast<A>(teacher);
  g.gap = static_cast<A>(student - teacher);
  if (role.is_live()) g.log_ratio = static_cast<A>(row.pair.log_ratio());
  if (has_entropy(role) && dense_entropy()) g.diversity = static_cast<A>(role.factor * diversity_);
  g.entropy_scale = static_cast<A>(1 / options_.entropy_temperature);
  g.log_sum = static_cast<A>(row.log_sum_entropy);
  g.entropy = static_cast<A>(row.terms[BALORA_HEAD_ENTROPY]);
  if (options_.softcap > 0) g.inverse_cap = static_cast<A>(1 / options_.softcap);
  return g;
}

template <typename A>
auto HeadRows<A>::form_places(const RowRole& role, const HeadRow& row) -> std::span<const Place> {
  places_.clear(), place_z_.clear(), place_y_.clear();
  const double diversity = role.factor * diversity_;
  if (has_entropy(role) && !dense_entropy() && diversity != 0) {
    for (const auto& [index, z, y] : top_) {
      const double log_pi =
          (static_cast<double>(z) - row.shift_entropy) / options_.entropy_temperature -
          row.log_sum_entropy;
      const double added = diversity * std::exp(log_pi) * (log_pi + row.terms[BALORA_HEAD_ENTROPY]);
      places_.push_back({index, static_cast<A>(added)});
      place_z_.push_back(z), place_y_.push_back(y);
    }
  }
  if (role.target >= 0) {
    auto at = std::ranges::find(places_, role.target, &Place::index);
    if (at == places_.end()) {
      at = places_.insert(at, {role.target, A(0)});
      place_z_.push_back(static_cast<A>(row.target));
      place_y_.push_back(static_cast<A>(row.target_teacher));
    }
    at->value -= static_cast<A>(role.factor * options_.task_scale);
  }
  const head::Gradient<A> gradient = gradient_of(role, row);
  const int64_t count = std::ssize(places_);
  const auto keep = [&](std::vector<A>& logits, double shift) {
    at_level<&head::scaled_exp<A>>(logits.data(), count, static_cast<A>(shift), scale_of(role),
                                   A(1), logits.data());
  };
  if (keeps_) keep(place_z_, row.shift), keep(place_y_, row.shift_teacher);
  for (size_t i = 0; i < places_.size(); ++i) {
    // A logit, since no exponential is kept beside a cap.
    const A capped = place_z_[i] * gradient.inverse_cap;
    places_[i].value *= A(1) - capped * capped;
  }
  at_level<&head::dense_gradient<A, A>>(place_z_.data(), role.is_live() ? place_y_.data() : nullptr,
                                        count, gradient, place_z_.data());
  for (size_t i = 0; i < places_.size(); ++i) places_[i].value += place_z_[i];
  return places_;
}

template <typename A>
template <typename Out>
void HeadRows<A>::gradient(const RowOperands<A>& operands, const HeadRow& row) {
  const auto& [z, y, role] = operands;
  auto* const out = reinterpret_cast<Out*>(z);
  at_level<&head::dense_gradient<A, Out>>(z, y, vocabulary_, gradient_of(role, row), out);
  for (const Place& place : form_places(role, row)) out[place.index] = store<Out>(place.value);
}

template class HeadRows<float>;
template class HeadRows<double>;
template void HeadRows<float>::gradient<float>(const RowOperands<float>&, const HeadRow&);
template void HeadRows<float>::gradient<bf16>(const RowOperands<float>&, const HeadRow&);
template void HeadRows<double>::gradient<double>(const RowOperands<double>&, const HeadRow&);

}  // namespace balora
