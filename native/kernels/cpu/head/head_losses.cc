// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T, one pass for the statistics, one that writes dZ
// over Z, then dH = dZ W and dW += dZ^T H. Logits are f32 (f64 when H is f64) and never leave the
// chunk; with bf16 weights dZ is rounded to bf16 for the product, after p - 1 has been formed in
// f32, each row in the first half of its own place. A teacher may come as a summary instead of its
// hidden states: q's mean of the head's rows, mu = sum_j q_j w_j, and q's entropy. Then
// KL(q || p) = lse(z/T) - h mu / T - H(q), and mu leaves dH as it came into h mu.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/messages.h"

namespace balora {
namespace {

using Operands = balora_head_losses;

// Targets (M), or null.
int64_t target_of(const View* targets, int64_t row) {
  return targets ? data_of<int32_t>(targets)[row] : -1;
}

bool is_regularized(const Operands& o, int64_t row) {
  return !o.regularized || data_of<uint8_t>(o.regularized)[row] != 0;
}

void check_targets(const View* targets, int64_t vocabulary) {
  for (int64_t n = 0; targets && n < targets->shape[0]; ++n) {
    const int64_t target = target_of(targets, n);
    if (target != BALORA_IGNORED_TARGET && (target < 0 || target >= vocabulary)) {
      throw ArgumentError(messages::target_out_of_range(target, n, vocabulary));
    }
  }
}

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

template <typename A>
HeadCall<A>::HeadCall(Context* ctx, const balora_head_losses& operands)
    : ctx(ctx),
      o(operands),
      options(scaled_options(operands)),
      terms(data_of<double>(operands.rows)) {
  check_targets(o.targets, o.w->shape[0]);
  if (terms) return;
  own_terms_.resize(static_cast<size_t>(BALORA_HEAD_TERMS * o.h->shape[0]));
  terms = own_terms_.data();
}

template <typename A>
RowRole HeadCall<A>::role_of(int64_t row) const {
  RowRole role = {.target = target_of(o.targets, row), .regularized = is_regularized(o, row)};
  if (role.regularized) role.teacher = teacher_of(row);
  role.factor = factor_of(row) * options.logit_scale;
  return role;
}

template <typename A>
double HeadCall<A>::factor_of(int64_t row) const {
  return o.factors ? data_of<double>(o.factors)[row] : 1;
}

template <typename A>
TeacherRow HeadCall<A>::teacher_of(int64_t row) const {
  TeacherRow teacher = {.kind = o.teacher.kind};
  if (!is_summarized()) return teacher;
  const int64_t channels = o.h->shape[1];
  const A* mean = static_cast<const A*>(rows_of(o.teacher.mean, row));
  double& dot = teacher.mean_logit;
  dispatch_float(o.h->dtype, [&]<typename T>() {
    const T* h = static_cast<const T*>(rows_of(o.h, row));
    for (int64_t c = 0; c < channels; ++c) {
      dot += static_cast<double>(load(h[c])) * static_cast<double>(mean[c]);
    }
  });
  dot *= options.logit_scale;
  teacher.entropy = data_of<double>(o.teacher.entropy)[row];
  return teacher;
}

// sums -= consistency_scale T mu times each row's factor, for the rows of the regularizers.
template <typename A>
void HeadCall<A>::store_hidden(Range rows, A* sums) const {
  const int64_t channels = o.h->shape[1];
  const double scale = options.consistency_scale * options.temperature * options.logit_scale;
  for (int64_t row = rows.begin; is_summarized() && row < rows.end; ++row) {
    if (!is_regularized(o, row)) continue;
    const A* mean = static_cast<const A*>(rows_of(o.teacher.mean, row));
    const A factor = static_cast<A>(scale * factor_of(row));
    A* const to = sums + (row - rows.begin) * channels;
    for (int64_t c = 0; c < channels; ++c) to[c] -= factor * mean[c];
  }
  convert_rows(ctx, {sums, kDtypeOfAcc<A>, channels},
               {rows_of(o.dh, rows.begin), o.dh->dtype, channels}, rows.end - rows.begin, channels);
}

template <typename A>
void HeadCall<A>::add_head(Range rows, Range tokens, const GemmInput& dz) const {
  const int64_t channels = o.h->shape[1];
  gemm(ctx, {tokens.end - tokens.begin, channels, rows.end - rows.begin}, dz,
       {rows_of(o.h, rows.begin), o.h->dtype, o.h->stride[0]},
       {rows_of(o.dw, tokens.begin), o.dw->dtype, channels}, {1, rows.begin ? 1.0 : 0.0});
}

template <typename A>
void HeadCall<A>::store_sums() const {
  double* sums = data_of<double>(o.sums);
  std::fill_n(sums, BALORA_HEAD_TERMS, 0.0);
  for (int64_t n = 0; n < o.h->shape[0]; ++n) {
    for (int i = 0; i < BALORA_HEAD_TERMS; ++i) sums[i] += terms[BALORA_HEAD_TERMS * n + i];
  }
  const auto loss_of = [&](const double* of) {
    return options.task_scale * of[BALORA_HEAD_TASK] +
           options.consistency_scale * of[BALORA_HEAD_CONSISTENCY] -
           options.diversity_scale * of[BALORA_HEAD_ENTROPY];
  };
  sums[BALORA_HEAD_LOSS] = o.factors ? 0 : loss_of(sums);
  for (int64_t n = 0; o.factors && n < o.h->shape[0]; ++n) {
    sums[BALORA_HEAD_LOSS] += factor_of(n) * loss_of(terms + BALORA_HEAD_TERMS * n);
  }
}

template class HeadCall<float>;
template class HeadCall<double>;

namespace {

// The way for all operands: chunks of rows, each row's logits beside each other.
template <typename A>
void run_by_rows(Context* ctx, const Operands& o) {
  const HeadCall<A> call(ctx, o);
  const int64_t all = o.h->shape[0], channels = o.h->shape[1], vocabulary = o.w->shape[0];
  const int64_t ld = logits_ld(vocabulary);
  const bool live = o.teacher.kind == BALORA_TEACHER_LIVE;
  const bool gradient = call.wants_gradient();
  const bool rounds = std::is_same_v<A, float> && gradient && o.w->dtype == BALORA_BF16 &&
                      gemm_has_bf16();                       // dZ, to bf16
  const bool tiled = rounds && head_fits_tiles(*o.h, *o.w);  // dH = dZ W
  const int64_t row_bytes = ld * static_cast<int64_t>(sizeof(A) * (live ? 2 : 1));
  const int64_t chunk = chunk_rows(all, chunk_budget(call.options, *o.h, *o.w), row_bytes);
  A* const z = workspace<A>(ctx, chunk * ld);
  A* const y = live ? workspace<A>(ctx, chunk * ld) : nullptr;
  A* const sum =
      (tiled || call.is_summarized()) && o.dh ? workspace<A>(ctx, chunk * channels) : nullptr;
  const GemmInput dz = {z, rounds ? static_cast<int32_t>(BALORA_BF16) : kDtypeOfAcc<A>,
                        rounds ? 2 * ld : ld, true};
  std::vector<LogitsOf<A>> products = {{o.h, o.w, z}};
  if (live) products.push_back({o.teacher.hidden, head_of(o.teacher, *o.w), y});
  for (int64_t first = 0; first < all && !is_stopped(ctx); first += chunk) {
    const int64_t rows = std::min(chunk, all - first);
    head_logits<A>(ctx, products, first, rows);
    share_out(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      HeadRows<A> head(call.options, vocabulary);
      for (int64_t i = begin; i < end; ++i) {
        RowOperands<A> operands{.z = z + i * ld, .role = call.role_of(first + i)};
        if (operands.role.teacher.kind == BALORA_TEACHER_LIVE) operands.y = y + i * ld;
        head.cap(operands.z);
        if (operands.y) head.cap(operands.y);
        const HeadRow found = head.statistics(operands);
        found.store_terms(call.terms + BALORA_HEAD_TERMS * (first + i));
        if (!gradient) continue;
        if (rounds) {
          if constexpr (std::is_same_v<A, float>) head.template gradient<bf16>(operands, found);
        } else {
          head.template gradient<A>(operands, found);
        }
      }
    });
    if (o.dh) {
      const GemmOutput wide = {sum, kDtypeOfAcc<A>, channels};
      if constexpr (std::is_same_v<A, float>) {
        if (tiled) {
          const auto* const rounded = reinterpret_cast<const bf16*>(z);
          head_gradient_tiles(ctx, {&rounded, 1}, dz.ld, rows, *o.w, sum);
        }
      }
      if (!tiled) {
        const ProductTerm term{dz.data, dz.dtype, dz.ld, o.w};
        const GemmOutput dh = {rows_of(o.dh, first), o.dh->dtype, channels};
        sum_products(ctx, {rows, channels, {&term, 1}}, sum ? wide : dh);
      }
      if (sum) call.store_hidden({first, first + rows}, sum);
    }
    if (o.dw) call.add_head({first, first + rows}, {0, vocabulary}, dz);
  }
  call.store_sums();
}

void by_rows(Context* ctx, const Operands& o) {
  if (o.h->dtype == BALORA_F64) return run_by_rows<double>(ctx, o);
  run_by_rows<float>(ctx, o);
}

// A teacher's summary keeps it in C numbers a row, so that it need not run again. For the product q
// is rounded to 16 bits (a pair of bf16), or not at all.

// A row of q as bf16, the rounded values in the first half of its place, what is left of them in
// the second.
void split_pair(float* q, int64_t n, std::vector<float>& scratch) {
  scratch.assign(q, q + n);
  auto* high = reinterpret_cast<bf16*>(q);
  convert_row(scratch.data(), high, n);
  for (int64_t i = 0; i < n; ++i) {
    high[n + i] = to_bf16(scratch[static_cast<size_t>(i)] - to_float(high[i]));
  }
}

template <typename A>
void summarize(Context* ctx, const balora_teacher_summary& o, const HeadOptions& options) {
  const View &ht = *o.teacher.hidden, &w = *o.w, &wt = *head_of(o.teacher, w);
  const int64_t m = ht.shape[0], vocabulary = wt.shape[0], channels = w.shape[1];
  check_targets(o.targets, vocabulary);
  const int64_t ld = logits_ld(vocabulary);
  const bool tiled = std::is_same_v<A, float> && head_fits_tiles(ht, w);
  const int64_t chunk =
      chunk_rows(m, chunk_budget(options, ht, wt), ld * static_cast<int64_t>(sizeof(A)));
  A* q = workspace<A>(ctx, chunk * ld);
  for (int64_t first = 0; first < m && !is_stopped(ctx); first += chunk) {
    const int64_t rows = std::min(chunk, m - first);
    const LogitsOf<A> logits{&ht, &wt, q};
    head_logits<A>(ctx, {&logits, 1}, first, rows);
    parallel_for(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      HeadRows<A> head(options, vocabulary);
      std::vector<float> scratch;
      for (int64_t i = begin; i < end; ++i) {
        A* row = q + i * ld;
        head.cap(row);
        const RowRole role = {.target = target_of(o.targets, first + i)};
        const HeadRow found = head.statistics({.z = row, .role = role});
        data_of<double>(o.summary.entropy)[first + i] = found.entropy;
        if (o.targets) data_of<double>(o.summary.log_probability)[first + i] = 0.0 - found.task;
        head.probabilities(row, found, row);
        if constexpr (std::is_same_v<A, float>) {
          if (tiled) split_pair(row, vocabulary, scratch);
        }
      }
    });
    A* out = data_of<A>(o.summary.mean) + first * channels;
    if constexpr (std::is_same_v<A, float>) {
      if (tiled) {
        const auto* high = reinterpret_cast<const bf16*>(q);
        const bf16* const parts[] = {high, high + vocabulary};
        head_gradient_tiles(ctx, parts, 2 * ld, rows, w, out);
        continue;
      }
    }
    const ProductTerm term{q, kDtypeOfAcc<A>, ld, &w};
    sum_products(ctx, {rows, channels, {&term, 1}}, {out, kDtypeOfAcc<A>, channels});
  }
}

constexpr Implementation<balora_head_losses> kHeadLosses[] = {
    BALORA_X86("by_token", platform::kAmx | platform::kBf16, x86::takes_by_token,
               x86::head_losses_by_token),
    {"by_rows", 0, nullptr, by_rows},
};

}  // namespace

BALORA_IMPLEMENTATIONS(head_losses, kHeadLosses)

int32_t head_losses_kernel(Context* ctx, const balora_head_losses& o) {
  return run_first(kHeadLosses, ctx, o);
}

int32_t teacher_summary_kernel(Context* ctx, const balora_teacher_summary& o) {
  HeadOptions whole = o.options;  // the entropy of all of q, at T
  whole.entropy_top_k = 0;
  whole.entropy_temperature = o.options.temperature;
  if (o.teacher.hidden->dtype == BALORA_F64) {
    summarize<double>(ctx, o, whole);
  } else {
    summarize<float>(ctx, o, whole);
  }
  return 0;
}

}  // namespace balora
