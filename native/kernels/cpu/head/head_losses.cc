// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T, one pass for the statistics, one that writes dZ
// over Z, then dH = dZ W and dW += dZ^T H. Logits are f32 (f64 when H is f64) and never leave the
// chunk; with bf16 weights dZ is rounded to bf16 for the product, after p - 1 has been formed in
// f32, each row in the first half of its own place. A teacher may come as a summary instead of its
// hidden states: q's mean of the head's rows, mu = sum_j q_j w_j, and q's entropy. Then
// KL(q || p) = lse(z/T) - h mu / T - H(q), and mu leaves dH as it came into h mu.
#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/messages.h"

namespace balora {
namespace {

using Operands = balora_head_losses;

// Targets (M), or null.
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
  if (role.regularized) role.teacher = teacher_of(row);
  role.factor = factor_of(row) * options.logit_scale;
  return role;
}

TeacherRow HeadCall::teacher_of(int64_t row) const {
  TeacherRow teacher = {.kind = o.teacher.kind};
  if (!is_summarized()) return teacher;
  double& dot = teacher.mean_logit;
  dispatch_float(o.h->dtype, [&]<typename T>() {
    const T* h = static_cast<const T*>(rows_of(o.h, row));
    const auto* mean = static_cast<const Acc<T>*>(rows_of(o.teacher.mean, row));
    for (int64_t c = 0; c < o.h->shape[1]; ++c) {
      dot += static_cast<double>(load(h[c])) * static_cast<double>(mean[c]);
    }
  });
  dot *= options.logit_scale;
  teacher.entropy = data_of<double>(o.teacher.entropy)[row];
  return teacher;
}

// sums -= consistency_scale T mu times each row's factor, for the rows of the regularizers.
template <typename A>
void HeadCall::store_hidden(Range rows, A* sums) const {
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
template void HeadCall::store_hidden<float>(Range, float*) const;

void HeadCall::add_head(Range rows, Range tokens, const GemmInput& dz) const {
  const int64_t channels = o.h->shape[1];
  gemm(ctx, {tokens.end - tokens.begin, channels, rows.end - rows.begin}, dz,
       {rows_of(o.h, rows.begin), o.h->dtype, o.h->stride[0]},
       {rows_of(o.dw, tokens.begin), o.dw->dtype, channels}, {1, rows.begin ? 1.0 : 0.0});
}

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

namespace {

// Rows by chunks, each row's logits beside each other. A live teacher has the second of
// two products.
template <typename A>
struct LogitsByRows {
  Context* ctx;
  const HeadOptions& options;
  std::vector<LogitsOf<A>> products;  // whose logits are made here
  int64_t all, vocabulary, ld, chunk;
  A* z;  // the first product's

  LogitsByRows(Context* ctx, const HeadOptions& options, std::vector<LogitsOf<A>> products)
      : ctx(ctx), options(options), products(std::move(products)) {
    const View &h = *this->products[0].h, &w = *this->products[0].w;
    all = h.shape[0], vocabulary = w.shape[0], ld = logits_ld(vocabulary);
    const int64_t row_bytes = ld * static_cast<int64_t>(sizeof(A)) * std::ssize(this->products);
    chunk = chunk_rows(all, chunk_budget(options, logits_bytes(h, w)), row_bytes);
    for (LogitsOf<A>& product : this->products) product.logits = workspace<A>(ctx, chunk * ld);
    z = this->products[0].logits;
  }

  // Calls row(head, i, z, y) for the products of each row, y being the last one's, then
  // multiply(first, rows) for the chunk.
  template <typename Row, typename Multiply>
  void run(const Row& row, const Multiply& multiply) const {
    for_chunks(ctx, all, chunk, [&](int64_t first, int64_t rows) {
      head_logits<A>(ctx, products, first, rows);
      share_out(ctx, rows, 1, [&](int64_t begin, int64_t end) {
        HeadRows<A> head(options, vocabulary);
        for (int64_t i = begin; i < end; ++i) {
          row(head, first + i, z + i * ld, products.back().logits + i * ld);
        }
      });
      multiply(first, rows);
    });
  }
};

// The way for all operands.
template <typename A>
void run_by_rows(Context* ctx, const Operands& o) {
  const HeadCall call(ctx, o);
  const int64_t channels = o.h->shape[1];
  const bool rounds = std::is_same_v<A, float> && o.w->dtype == BALORA_BF16 && gemm_has_bf16();
  std::vector<LogitsOf<A>> products = {{o.h, o.w}};
  const bool live = o.teacher.kind == BALORA_TEACHER_LIVE;
  if (live) products.push_back({o.teacher.hidden, head_of(o.teacher, *o.w)});
  const LogitsByRows<A> logits(ctx, call.options, std::move(products));
  const bool is_summed = (rounds && head_fits_tiles(*o.h, *o.w)) || call.is_summarized();
  A* const sum = is_summed && o.dh ? workspace<A>(ctx, logits.chunk * channels) : nullptr;
  GemmInput dz = {logits.z, kDtypeOfAcc<A>, logits.ld, true};
  if (rounds) dz.dtype = BALORA_BF16, dz.ld *= 2;
  const auto row = [&](HeadRows<A>& head, int64_t i, A* z, A* y) {
    RowOperands<A> operands = {.z = z, .role = call.role_of(i)};
    if (operands.role.teacher.kind == BALORA_TEACHER_LIVE) operands.y = y;
    const HeadRow found = head.statistics(operands);
    found.store_terms(call.terms + BALORA_HEAD_TERMS * i);
    if (!call.wants_gradient()) return;
    if constexpr (std::is_same_v<A, float>) {
      if (rounds) return head.template gradient<bf16>(operands, found);
    }
    head.template gradient<A>(operands, found);
  };
  const auto multiply = [&](int64_t first, int64_t rows) {
    if (o.dh) {
      const GemmOutput wide = {sum, kDtypeOfAcc<A>, channels};
      const GemmOutput dh = {rows_of(o.dh, first), o.dh->dtype, channels};
      head_gradient(ctx, {&dz, 1}, rows, *o.h, *o.w, sum ? wide : dh);
      if (sum) call.store_hidden({first, first + rows}, sum);
    }
    if (o.dw) call.add_head({first, first + rows}, {0, logits.vocabulary}, dz);
  };
  logits.run(row, multiply);
  call.store_sums();
}

void by_rows(Context* ctx, const Operands& o) {
  if (o.h->dtype == BALORA_F64) return run_by_rows<double>(ctx, o);
  run_by_rows<float>(ctx, o);
}

// A teacher's summary keeps it in C numbers a row, so that it need not run again. For products in
// tiles q is rounded to 16 bits (a pair of bf16).
template <typename A>
void summarize(Context* ctx, const balora_teacher_summary& o, const HeadOptions& options) {
  const View &ht = *o.teacher.hidden, &w = *o.w, &wt = *head_of(o.teacher, w);
  check_targets(o.targets, wt.shape[0]);
  const LogitsByRows<A> logits(ctx, options, {{&ht, &wt}});
  const bool pairs = std::is_same_v<A, float> && head_fits_tiles(ht, w);
  std::vector<GemmInput> parts = {{logits.z, kDtypeOfAcc<A>, logits.ld}};
  if (pairs) {
    auto* const high = reinterpret_cast<bf16*>(logits.z);
    parts = {{high, BALORA_BF16, 2 * logits.ld},
             {high + logits.vocabulary, BALORA_BF16, 2 * logits.ld}};
  }
  const auto row = [&](HeadRows<A>& head, int64_t i, A* z, A*) {
    const HeadRow found = head.statistics({.z = z, .role = {.target = target_of(o.targets, i)}});
    data_of<double>(o.summary.entropy)[i] = found.entropy;
    if (o.targets) data_of<double>(o.summary.log_probability)[i] = 0.0 - found.task;
    head.probabilities(z, found, pairs);
  };
  logits.run(row, [&](int64_t first, int64_t rows) {
    head_gradient(ctx, parts, rows, ht, w,
                  {rows_of(o.summary.mean, first), kDtypeOfAcc<A>, w.shape[1]});
  });
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
