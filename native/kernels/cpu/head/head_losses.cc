// Language-model head and losses without the (M,V) logits: the list of ways, by tokens or by rows,
// and what both ask of a call. A teacher may come as a summary instead of its hidden states: q's
// mean of the head's rows, mu = sum_j q_j w_j, and q's entropy. Then
// KL(q || p) = lse(z/T) - h mu / T - H(q), and mu leaves dH as it came into h mu.
#include <algorithm>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/shared/messages.h"

namespace balora {
namespace {

using Operands = balora_head_losses;

constexpr Implementation<Operands> kHeadLosses[] = {
    BALORA_X86(
        "by_token", platform::kAmx | platform::kBf16,
        [](const Operands& o) { return x86::rows_by_token(o) > 0; }, x86::head_losses_by_token),
    {"by_rows", 0, nullptr, head_losses_by_rows},
};

HeadOptions scaled_options(const Operands& o) {
  HeadOptions options = o.options;
  if (options.logit_scale == 0) options.logit_scale = 1;
  if (!o.scales) return options;
  const double* by = data_of<double>(o.scales);
  options.task_scale *= by[BALORA_HEAD_TASK];
  options.consistency_scale *= by[BALORA_HEAD_CONSISTENCY];
  options.diversity_scale *= by[BALORA_HEAD_ENTROPY];
  return options;
}

}  // namespace

int64_t target_of(const View* targets, int64_t row) {
  return targets ? data_of<int32_t>(targets)[row] : -1;
}

void check_targets(const View* targets, int64_t vocabulary) {
  for (int64_t n = 0; targets && n < targets->shape[0]; ++n) {
    const int64_t target = target_of(targets, n);
    if (target != BALORA_IGNORED_TARGET && (target < 0 || target >= vocabulary)) {
      throw ArgumentError(messages::target_out_of_range(target, n, vocabulary));
    }
  }
}

HeadCall::HeadCall(Context* ctx, const Operands& operands)
    : ctx(ctx),
      o(operands),
      options(scaled_options(operands)),
      terms(data_of<double>(operands.rows)) {
  check_targets(o.targets, o.w->shape[0]);
  if (terms) return;
  own_terms_.resize(static_cast<size_t>(BALORA_HEAD_TERMS * o.h->shape[0]));
  terms = own_terms_.data();
}

RowRole HeadCall::role_of(int64_t row) const {
  RowRole role = {.target = target_of(o.targets, row), .regularized = is_regularized(row)};
  role.factor = factor_of(row) * options.logit_scale;
  if (!role.regularized) return role;
  role.teacher = o.teacher.kind;
  if (!is_summarized()) return role;
  role.teacher_entropy = data_of<double>(o.teacher.entropy)[row];
  double dot = 0;
  dispatch_float(o.h->dtype, [&]<typename T>() {
    const T* h = static_cast<const T*>(rows_of(o.h, row));
    const auto* mean = static_cast<const Acc<T>*>(rows_of(o.teacher.mean, row));
    for (int64_t c = 0; c < o.h->shape[1]; ++c) {
      dot += static_cast<double>(load(h[c])) * static_cast<double>(mean[c]);
    }
  });
  role.mean_logit = dot * options.logit_scale;
  return role;
}

// sums -= consistency_scale T mu times each row's factor, for the rows of the regularizers.
template <typename A>
void HeadCall::store_hidden(HeadRange rows, A* sums) const {
  const int64_t channels = o.h->shape[1];
  const double scale = options.consistency_scale * options.temperature * options.logit_scale;
  for (int64_t row = rows.begin; is_summarized() && row < rows.end; ++row) {
    if (!is_regularized(row)) continue;
    const A* mean = static_cast<const A*>(rows_of(o.teacher.mean, row));
    const A factor = static_cast<A>(scale * factor_of(row));
    A* const to = sums + (row - rows.begin) * channels;
    for (int64_t c = 0; c < channels; ++c) to[c] -= factor * mean[c];
  }
  convert_rows(ctx, {sums, kDtypeOfAcc<A>, channels},
               {rows_of(o.dh, rows.begin), o.dh->dtype, channels}, rows.end - rows.begin, channels);
}
template void HeadCall::store_hidden(HeadRange, float*) const;
template void HeadCall::store_hidden(HeadRange, double*) const;

void HeadCall::store_sums() const {
  double* sums = data_of<double>(o.sums);
  std::fill_n(sums, BALORA_HEAD_SUMS, 0.0);
  const auto loss_of = [&](const double* of) {
    return options.task_scale * of[BALORA_HEAD_TASK] +
           options.consistency_scale * of[BALORA_HEAD_CONSISTENCY] -
           options.diversity_scale * of[BALORA_HEAD_ENTROPY];
  };
  for (int64_t n = 0; n < o.h->shape[0]; ++n) {
    const double* const row = terms + BALORA_HEAD_TERMS * n;
    for (int i = 0; i < BALORA_HEAD_TERMS; ++i) sums[i] += row[i];
    if (o.factors) sums[BALORA_HEAD_LOSS] += factor_of(n) * loss_of(row);
  }
  if (!o.factors) sums[BALORA_HEAD_LOSS] = loss_of(sums);
}

BALORA_IMPLEMENTATIONS(head_losses, kHeadLosses)

int32_t head_losses_kernel(Context* ctx, const balora_head_losses& o) {
  return run_first(kHeadLosses, ctx, o);
}

}  // namespace balora
