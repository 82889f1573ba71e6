// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T, one pass for the statistics, one that writes dZ
// over Z, then dH = dZ W and dW += dZ^T H. Logits are f32 (f64 when H is f64) and never leave the
// chunk; with bf16 weights dZ is rounded to bf16 for the product, after p - 1 has been formed in
// f32, each row in the first half of its own place. A teacher may come as a summary instead of its
// hidden states (teacher_summary.cc): q's mean of the head's rows, mu = sum_j q_j w_j, and q's
// entropy. Then KL(q || p) = lse(z/T) - h mu / T - H(q), and mu leaves dH as it came into h mu.
#include <algorithm>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/messages.h"
#include "platform/cpu.h"

namespace balora {
namespace {

using Operands = balora_head_losses;

int64_t target_of(const Operands& o, int64_t row) {
  return o.targets ? data_of<int32_t>(o.targets)[row] : -1;
}

bool is_regularized(const Operands& o, int64_t row) {
  return !o.regularized || data_of<uint8_t>(o.regularized)[row] != 0;
}

void check_targets(const Operands& o) {
  if (!o.targets) return;
  const int64_t vocabulary = o.w->shape[0];
  for (int64_t n = 0; n < o.h->shape[0]; ++n) {
    const int64_t target = target_of(o, n);
    if (target != BALORA_IGNORED_TARGET && (target < 0 || target >= vocabulary)) {
      throw ArgumentError(messages::target_out_of_range(target, n, vocabulary));
    }
  }
}

HeadOptions scaled_options(const Operands& o) {
  HeadOptions options = o.options;
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
  check_targets(o);
  if (terms) return;
  own_terms_.resize(static_cast<size_t>(BALORA_HEAD_TERMS * o.h->shape[0]));
  terms = own_terms_.data();
}

template <typename A>
RowRole HeadCall<A>::role_of(int64_t row) const {
  RowRole role = {.target = target_of(o, row), .regularized = is_regularized(o, row)};
  if (!o.mean) return role;
  const int64_t channels = o.h->shape[1];
  const A* mean = static_cast<const A*>(rows_of(o.mean, row));
  double dot = 0;
  dispatch_float(o.h->dtype, [&]<typename T>() {
    const T* h = static_cast<const T*>(rows_of(o.h, row));
    for (int64_t c = 0; c < channels; ++c) {
      dot += static_cast<double>(load(h[c])) * static_cast<double>(mean[c]);
    }
  });
  role.summary = {data_of<double>(o.entropy)[row], dot};
  return role;
}

// sums -= consistency_scale T mu, for the rows of the regularizers.
template <typename A>
void HeadCall<A>::store_hidden(Range rows, A* sums) const {
  const int64_t channels = o.h->shape[1];
  const A factor = static_cast<A>(options.consistency_scale * options.temperature);
  for (int64_t row = rows.begin; o.mean && row < rows.end; ++row) {
    if (!is_regularized(o, row)) continue;
    const A* mean = static_cast<const A*>(rows_of(o.mean, row));
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
  sums[BALORA_HEAD_LOSS] = options.task_scale * sums[BALORA_HEAD_TASK] +
                           options.consistency_scale * sums[BALORA_HEAD_CONSISTENCY] -
                           options.diversity_scale * sums[BALORA_HEAD_ENTROPY];
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
  const bool gradient = call.wants_gradient();
  const bool rounds = std::is_same_v<A, float> && gradient && o.w->dtype == BALORA_BF16 &&
                      platform::cpu().uses(platform::kBf16);  // dZ, to bf16
  const bool tiled = rounds && head_fits_tiles(*o.h, *o.w);   // dH = dZ W
  const int64_t row_bytes = ld * static_cast<int64_t>(sizeof(A) * (o.ht ? 2 : 1));
  const int64_t chunk = chunk_rows(all, chunk_budget(call.options, *o.h, *o.w), row_bytes);
  A* const z = workspace<A>(ctx, chunk * ld);
  A* const y = o.ht ? workspace<A>(ctx, chunk * ld) : nullptr;
  A* const sum = (tiled || o.mean) && o.dh ? workspace<A>(ctx, chunk * channels) : nullptr;
  const GemmInput dz = {z, rounds ? static_cast<int32_t>(BALORA_BF16) : kDtypeOfAcc<A>,
                        rounds ? 2 * ld : ld, true};
  std::vector<LogitsOf<A>> products = {{o.h, o.w, z}};
  if (o.ht) products.push_back({o.ht, o.wt ? o.wt : o.w, y});
  for (int64_t first = 0; first < all && !is_stopped(ctx); first += chunk) {
    const int64_t rows = std::min(chunk, all - first);
    head_logits<A>(ctx, products, first, rows);
    share_out(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      HeadRows<A> head(call.options, vocabulary);
      for (int64_t i = begin; i < end; ++i) {
        const RowOperands<A> operands{
            .z = z + i * ld, .y = y ? y + i * ld : nullptr, .role = call.role_of(first + i)};
        head.cap(operands.z);
        if (operands.y) head.cap(operands.y);
        const HeadRow found = head.statistics(operands);
        found.store_terms(call.terms + BALORA_HEAD_TERMS * (first + i));
        if (gradient) head.gradient(operands, found, rounds);
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

}  // namespace balora
