// The way through the head's losses for all operands: rows go in chunks of a byte budget. For each
// chunk Z = H W^T and Y = Ht Wt^T, one pass for the statistics, one that writes dZ over Z, then
// dH = dZ W and dW += dZ^T H. Logits are f32 (f64 when H is f64) and never leave the chunk; with
// bf16 weights dZ is rounded to bf16 for the product, after p - 1 has been formed in f32, each row
// in the first half of its own place.
#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cpu/head/head.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

// 256 rows of student and teacher at a vocabulary of 49,152: W is packed four times for 1,024 rows.
constexpr int64_t kChunkBytes = int64_t{100} << 20;
// Half as many where W is not packed, but widened or decoded, which takes a small part of the time.
constexpr int64_t kWidenedChunkBytes = int64_t{50} << 20;

// Rows by chunks, each row's logits beside each other; a live teacher has the second product.
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
    const int64_t own = is_widened(h, w) ? kWidenedChunkBytes : kChunkBytes;
    chunk = chunk_rows(all, chunk_budget(options, own), row_bytes);
    for (LogitsOf<A>& product : this->products) product.logits = workspace<A>(ctx, chunk * ld);
    z = this->products[0].logits;
  }

  // Calls row(head, i, z, y) for the products of each row, y being the last one's, then
  // multiply(first, rows) for the chunk.
  template <typename Row, typename Multiply>
  void run(const Row& row, const Multiply& multiply) const {
    std::vector<HeadRows<A>> heads(static_cast<size_t>(parallel_width(ctx, chunk, 1)),
                                   {options, vocabulary});
    for_chunks(ctx, all, chunk, [&](int64_t first, int64_t rows) {
      head_logits<A>(ctx, products, first, rows);
      share_out(ctx, rows, 1, [&](int64_t begin, int64_t end, int self) {
        HeadRows<A>& head = heads[static_cast<size_t>(self)];
        for (int64_t i = begin; i < end; ++i) {
          row(head, first + i, z + i * ld, products.back().logits + i * ld);
        }
      });
      multiply(first, rows);
    });
  }
};

template <typename A>
void run_by_rows(Context* ctx, const balora_head_losses& o) {
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
    if (operands.role.is_live()) operands.y = y;
    const HeadRow found = head.statistics(operands);
    std::copy_n(found.terms, BALORA_HEAD_TERMS, call.terms + BALORA_HEAD_TERMS * i);
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
    if (o.dw) {
      add_head_gradient(ctx, *o.dw, {0, logits.vocabulary}, dz, *o.h, {first, first + rows});
    }
  };
  logits.run(row, multiply);
  call.store_sums();
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
    data_of<double>(o.summary.entropy)[i] = found.terms[BALORA_HEAD_ENTROPY];
    if (o.targets)
      data_of<double>(o.summary.log_probability)[i] = 0.0 - found.terms[BALORA_HEAD_TASK];
    head.probabilities(z, found, pairs);
  };
  logits.run(row, [&](int64_t first, int64_t rows) {
    head_gradient(ctx, parts, rows, ht, w,
                  {rows_of(o.summary.mean, first), kDtypeOfAcc<A>, w.shape[1]});
  });
}

}  // namespace

void head_losses_by_rows(Context* ctx, const balora_head_losses& o) {
  if (o.h->dtype == BALORA_F64) return run_by_rows<double>(ctx, o);
  run_by_rows<float>(ctx, o);
}

int32_t teacher_summary_kernel(Context* ctx, const balora_teacher_summary& o) {
  HeadOptions whole = o.options;  // the entropy of all of q, at T
  whole.entropy_top_k = 0;
  whole.entropy_temperature = o.options.temperature;
  const auto run = o.teacher.hidden->dtype == BALORA_F64 ? summarize<double> : summarize<float>;
  run(ctx, o, whole);
  return 0;
}

}  // namespace balora
