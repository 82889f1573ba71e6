// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T, one pass for the statistics, one that writes dZ
// over Z, then dH = dZ W and dW += dZ^T H. Logits are f32 (f64 when H is f64) and never leave the
// chunk; with bf16 weights dZ is rounded to bf16 for the product, after p - 1 has been formed in
// f32, each row in the first half of its own place. A teacher may come as a summary instead of its
// hidden states (teacher_summary.cc): q's mean of the head's rows, mu = sum_j q_j w_j, and q's
// entropy. Then KL(q || p) = lse(z/T) - h mu / T - H(q), and mu leaves dH as it came into h mu.
#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head_by_token.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/head/head_rows.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
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

template <typename A>
class HeadChunks {
 public:
  // `options` are the operands' with all scales multiplied.
  HeadChunks(Context* ctx, const Operands& operands, const HeadOptions& options)
      : ctx_(ctx),
        o_(operands),
        options_(options),
        vocabulary_(operands.w->shape[0]),
        ld_(logits_ld(vocabulary_)) {
    rounds_ = std::is_same_v<A, float> && wants_gradient() && o_.w->dtype == BALORA_BF16 &&
              platform::cpu().uses(platform::kBf16);
    const int64_t row_bytes = ld_ * static_cast<int64_t>(sizeof(A) * (o_.ht ? 2 : 1));
    const int64_t by_token = std::is_same_v<A, float> ? HeadByToken::chunk_rows(o_) : 0;
    const int64_t budget = chunk_budget(options, *o_.h, *o_.w);
    chunk_ = by_token > 0 ? by_token : chunk_rows(o_.h->shape[0], budget, row_bytes);
    if (by_token > 0) {
      by_token_.emplace(ctx_, o_, options_, chunk_);
    } else {
      z_ = workspace<A>(ctx_, chunk_ * ld_);
      if (o_.ht) y_ = workspace<A>(ctx_, chunk_ * ld_);
    }
    tiled_ = rounds_ && head_fits_tiles(*o_.h, *o_.w);
    if ((tiled_ || o_.mean) && o_.dh) sum_ = workspace<A>(ctx_, chunk_ * o_.h->shape[1]);
  }

  void run(double* row_terms) {
    for (int64_t first = 0; first < o_.h->shape[0] && !is_stopped(ctx_); first += chunk_) {
      const int64_t rows = std::min(chunk_, o_.h->shape[0] - first);
      double* const terms = row_terms + BALORA_HEAD_TERMS * first;
      if (by_token_) {
        compute_by_token(first, rows, terms);
      } else {
        compute_by_row(first, rows, terms);
      }
      if (wants_gradient()) multiply_back(first, rows);
    }
  }

 private:
  bool wants_gradient() const { return o_.dh || o_.dw; }

  void compute_by_token(int64_t first, int64_t rows, double* terms) {
    std::vector<RowRole> roles(static_cast<size_t>(rows));
    parallel_for(ctx_, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) roles[static_cast<size_t>(i)] = role_of(first + i);
    });
    by_token_->compute(first, roles, terms);
  }

  void compute_by_row(int64_t first, int64_t rows, double* terms) {
    make_logits(first, rows);
    share_out(ctx_, rows, 1, [&](int64_t begin, int64_t end) {
      HeadRows<A> head(options_, vocabulary_);
      for (int64_t i = begin; i < end; ++i) {
        compute_row(head, first, i, terms + BALORA_HEAD_TERMS * i);
      }
    });
  }

  void make_logits(int64_t first, int64_t rows) {
    std::vector<LogitsOf<A>> products = {{o_.h, o_.w, z_}};
    if (o_.ht) products.push_back({o_.ht, o_.wt ? o_.wt : o_.w, y_});
    head_logits<A>(ctx_, products, first, rows);
  }

  // A row's values in the summary of its teacher.
  TeacherRow teacher_row(int64_t row) const {
    const int64_t channels = o_.h->shape[1];
    const A* mean = static_cast<const A*>(rows_of(o_.mean, row));
    double dot = 0;
    dispatch_float(o_.h->dtype, [&]<typename T>() {
      const T* h = static_cast<const T*>(rows_of(o_.h, row));
      for (int64_t c = 0; c < channels; ++c) {
        dot += static_cast<double>(load(h[c])) * static_cast<double>(mean[c]);
      }
    });
    return {data_of<double>(o_.entropy)[row], dot};
  }

  RowRole role_of(int64_t row) const {
    RowRole role = {.target = target_of(o_, row), .regularized = is_regularized(o_, row)};
    if (o_.mean) role.summary = teacher_row(row);
    return role;
  }

  // Row `i` of the chunk that begins with row `first`.
  void compute_row(HeadRows<A>& head, int64_t first, int64_t i, double* terms) const {
    const RowOperands<A> operands{
        .z = z_ + i * ld_, .y = y_ ? y_ + i * ld_ : nullptr, .role = role_of(first + i)};
    head.cap(operands.z);
    if (operands.y) head.cap(operands.y);
    const HeadRow found = head.statistics(operands);
    terms[BALORA_HEAD_TASK] = found.task;
    terms[BALORA_HEAD_CONSISTENCY] = found.consistency;
    terms[BALORA_HEAD_ENTROPY] = found.entropy;
    if (wants_gradient()) head.gradient(operands, found, rounds_);
  }

  void multiply_back(int64_t first, int64_t rows) {
    const int32_t dtype = rounds_ ? static_cast<int32_t>(BALORA_BF16) : kDtypeOfAcc<A>;
    const GemmInput dz = {z_, dtype, rounds_ ? 2 * ld_ : ld_, true};
    if (o_.dh || by_token_) sum_hidden(first, rows, dz);
    if (!o_.dw) return;
    if (!by_token_) return add_head(first, rows, {0, vocabulary_}, dz);
    const int64_t block = by_token_->block_tokens();
    for (int64_t token = 0; token < vocabulary_; token += block) {
      add_head(first, rows, {token, std::min(token + block, vocabulary_)},
               by_token_->gradient_of_block(token));
    }
  }

  // dh of a chunk.
  void sum_hidden(int64_t first, int64_t rows, const GemmInput& dz) {
    const int64_t channels = o_.h->shape[1];
    if constexpr (std::is_same_v<A, float>) {
      if (by_token_) {
        by_token_->multiply_back(sum_);
      } else if (tiled_) {
        const auto* const rounded = static_cast<const bf16*>(dz.data);
        head_gradient_tiles(ctx_, {&rounded, 1}, dz.ld, rows, *o_.w, sum_);
      }
    }
    if (!o_.dh) return;
    const GemmOutput dh = {rows_of(o_.dh, first), o_.dh->dtype, channels};
    const GemmOutput sum = {sum_, kDtypeOfAcc<A>, channels};
    if (!tiled_) {
      const ProductTerm term{dz.data, dz.dtype, dz.ld, o_.w};
      sum_products(ctx_, {rows, channels, {&term, 1}}, sum_ ? sum : dh);
    }
    if (o_.mean) subtract_mean(first, rows);
    if (!sum_) return;
    convert_rows(ctx_, {sum_, sum.dtype, channels}, {dh.data, dh.dtype, channels}, rows, channels);
  }

  // dw of the tokens [begin, end) += dz^T h of a chunk.
  struct Tokens {
    int64_t begin, end;
  };
  void add_head(int64_t first, int64_t rows, Tokens tokens, const GemmInput& dz) {
    const int64_t channels = o_.h->shape[1];
    gemm(ctx_, {tokens.end - tokens.begin, channels, rows}, dz,
         {rows_of(o_.h, first), o_.h->dtype, o_.h->stride[0]},
         {rows_of(o_.dw, tokens.begin), o_.dw->dtype, channels}, {1, first ? 1.0 : 0.0});
  }

  // sum -= consistency_scale T mu, for the rows of the regularizers.
  void subtract_mean(int64_t first, int64_t rows) {
    const int64_t channels = o_.h->shape[1];
    const A factor = static_cast<A>(options_.consistency_scale * options_.temperature);
    for (int64_t i = 0; i < rows; ++i) {
      if (!is_regularized(o_, first + i)) continue;
      const A* mean = static_cast<const A*>(rows_of(o_.mean, first + i));
      for (int64_t c = 0; c < channels; ++c) sum_[i * channels + c] -= factor * mean[c];
    }
  }

  Context* ctx_;
  const Operands& o_;
  HeadOptions options_;
  int64_t vocabulary_, ld_, chunk_ = 0;
  bool rounds_ = false;  // dZ, to bf16
  bool tiled_ = false;   // dH = dZ W
  A *z_ = nullptr, *y_ = nullptr;
  A* sum_ = nullptr;  // of dH, a chunk
  std::optional<HeadByToken> by_token_;
};

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

int32_t head_losses_kernel(Context* ctx, const balora_head_losses& o) {
  const HeadOptions options = scaled_options(o);
  const int64_t m = o.h->shape[0];
  check_targets(o);
  std::vector<double> own;
  double* terms = data_of<double>(o.rows);
  if (!terms) {
    own.resize(static_cast<size_t>(BALORA_HEAD_TERMS * m));
    terms = own.data();
  }
  if (o.h->dtype == BALORA_F64) {
    HeadChunks<double>(ctx, o, options).run(terms);
  } else {
    HeadChunks<float>(ctx, o, options).run(terms);
  }
  double* sums = data_of<double>(o.sums);
  std::fill_n(sums, BALORA_HEAD_TERMS, 0.0);
  for (int64_t n = 0; n < m; ++n) {
    for (int i = 0; i < BALORA_HEAD_TERMS; ++i) sums[i] += terms[BALORA_HEAD_TERMS * n + i];
  }
  sums[BALORA_HEAD_LOSS] = options.task_scale * sums[BALORA_HEAD_TASK] +
                           options.consistency_scale * sums[BALORA_HEAD_CONSISTENCY] -
                           options.diversity_scale * sums[BALORA_HEAD_ENTROPY];
  return 0;
}

}  // namespace balora
