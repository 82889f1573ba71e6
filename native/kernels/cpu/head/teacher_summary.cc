// The numbers of a teacher that a consistency term needs, where the student's head is linear and
// frozen: q's entropy and the mean of the head's rows under q = softmax(y / T). KL(q || p) and its
// gradient follow from them (head_losses.cc), so a teacher can be kept in C numbers a row instead
// of being run again. q is rounded to 16 bits (a pair of bf16) for the product, or not at all.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

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
  const View &ht = *o.ht, &wt = *o.wt, &w = *o.w;
  const int64_t m = ht.shape[0], vocabulary = wt.shape[0], channels = w.shape[1];
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
        const HeadRow found = head.statistics({.z = row});
        data_of<double>(o.entropy)[first + i] = found.entropy;
        head.probabilities(row, found, row);
        if constexpr (std::is_same_v<A, float>) {
          if (tiled) split_pair(row, vocabulary, scratch);
        }
      }
    });
    A* out = data_of<A>(o.mean) + first * channels;
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

}  // namespace

int32_t teacher_summary_kernel(Context* ctx, const balora_teacher_summary& o) {
  HeadOptions whole = o.options;  // the entropy of all of q, at T
  whole.entropy_top_k = 0;
  whole.entropy_temperature = o.options.temperature;
  if (o.ht->dtype == BALORA_F64) {
    summarize<double>(ctx, o, whole);
  } else {
    summarize<float>(ctx, o, whole);
  }
  return 0;
}

}  // namespace balora
