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
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/head/head_rows.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

struct HeadViews {
  const View *h, *ht, *w, *wt, *targets, *regularized, *sums, *rows, *dh, *dw;
  const View *mean = nullptr, *entropy = nullptr;  // the teacher's summary, both or none

  int64_t target(int64_t row) const { return targets ? data_of<int32_t>(targets)[row] : -1; }
  bool is_regularized(int64_t row) const {
    return !regularized || data_of<uint8_t>(regularized)[row] != 0;
  }
};

void check_targets(const HeadViews& v, int64_t vocabulary) {
  if (!v.targets) return;
  for (int64_t n = 0; n < v.h->shape[0]; ++n) {
    const int64_t target = v.target(n);
    if (target != -100 && (target < 0 || target >= vocabulary)) {
      throw ArgumentError(concat("head_losses: target ", target, " of row ", n,
                                 " is outside the vocabulary of ", vocabulary));
    }
  }
}

template <typename A>
class HeadChunks {
 public:
  HeadChunks(Context* ctx, const HeadViews& views, const HeadOptions& options)
      : ctx_(ctx),
        v_(views),
        options_(options),
        vocabulary_(views.w->shape[0]),
        ld_(logits_ld(vocabulary_)) {
    rounds_ = std::is_same_v<A, float> && wants_gradient() && v_.w->dtype == BALORA_BF16 &&
              cpu_multiplies_bf16();
    const int64_t m = v_.h->shape[0];
    const int64_t row_bytes = ld_ * static_cast<int64_t>(sizeof(A) * (v_.ht ? 2 : 1));
    chunk_ = chunk_rows(options, m, row_bytes);
    z_ = workspace<A>(ctx_, chunk_ * ld_);
    if (v_.ht) y_ = workspace<A>(ctx_, chunk_ * ld_);
    tiled_ = rounds_ && head_fits_tiles(*v_.h, *v_.w);
    if ((tiled_ || v_.mean) && v_.dh) sum_ = workspace<A>(ctx_, chunk_ * v_.h->shape[1]);
  }

  void run(double* row_terms) {
    for (int64_t first = 0; first < v_.h->shape[0]; first += chunk_) {
      const int64_t rows = std::min(chunk_, v_.h->shape[0] - first);
      make_logits(first, rows);
      parallel_for(ctx_, rows, 1, [&](int64_t begin, int64_t end) {
        HeadRows<A> head(options_, vocabulary_);
        for (int64_t i = begin; i < end; ++i) {
          take_row(head, first + i, z_ + i * ld_, v_.ht ? y_ + i * ld_ : nullptr,
                   row_terms + 3 * (first + i));
        }
      });
      if (wants_gradient()) multiply_back(first, rows);
    }
  }

 private:
  bool wants_gradient() const { return v_.dh || v_.dw; }

  void make_logits(int64_t first, int64_t rows) {
    const View& wt = v_.wt ? *v_.wt : *v_.w;
    std::vector<LogitsOf<A>> products = {{v_.h, z_}};
    if (v_.ht && &wt == v_.w) products.push_back({v_.ht, y_});
    head_logits<A>(ctx_, products, first, rows, *v_.w);
    if (!v_.ht || &wt == v_.w) return;
    products = {{v_.ht, y_}};
    head_logits<A>(ctx_, products, first, rows, wt);
  }

  // What the summary of a row's teacher says of it.
  TeacherRow teacher_row(int64_t row) const {
    const int64_t channels = v_.h->shape[1];
    const A* mean = static_cast<const A*>(rows_of(v_.mean, row));
    double dot = 0;
    dispatch_float(v_.h->dtype, [&]<typename T>() {
      const T* h = static_cast<const T*>(rows_of(v_.h, row));
      for (int64_t c = 0; c < channels; ++c) {
        dot += static_cast<double>(load(h[c])) * static_cast<double>(mean[c]);
      }
    });
    return {data_of<double>(v_.entropy)[row], dot};
  }

  void take_row(HeadRows<A>& head, int64_t row, A* z, A* y, double* terms) const {
    const int64_t target = v_.target(row);
    const bool regularized = v_.is_regularized(row);
    head.cap(z);
    if (y) head.cap(y);
    TeacherRow teacher;
    if (v_.mean) teacher = teacher_row(row);
    const HeadRow found = head.statistics(z, y, target, regularized, v_.mean ? &teacher : nullptr);
    terms[0] = found.task;
    terms[1] = found.consistency;
    terms[2] = found.entropy;
    if (wants_gradient()) head.gradient(z, y, target, regularized, found, rounds_);
  }

  void multiply_back(int64_t first, int64_t rows) {
    const int32_t dtype = rounds_ ? static_cast<int32_t>(BALORA_BF16) : dtype_of_logits<A>();
    const int64_t dz_ld = rounds_ ? 2 * ld_ : ld_;
    const int64_t channels = v_.h->shape[1];
    if (v_.dh) {
      const GemmOutput dh = {const_cast<void*>(rows_of(v_.dh, first)), v_.dh->dtype, channels};
      const GemmOutput sum = {sum_, dtype_of_logits<A>(), channels};
      if (tiled_) {
        if constexpr (std::is_same_v<A, float>) {
          const auto* rounded = reinterpret_cast<const bf16*>(z_);
          head_gradient_tiles(ctx_, {&rounded, 1}, dz_ld, rows, *v_.w, sum_);
        }
      } else {
        const ProductTerm term{z_, dtype, dz_ld, v_.w};
        sum_products(ctx_, {rows, channels, {&term, 1}}, sum_ ? sum : dh);
      }
      if (v_.mean) take_out_mean(first, rows);
      if (sum_) {
        convert_rows(ctx_, {sum_, sum.dtype, channels}, {dh.data, dh.dtype, channels}, rows,
                     channels);
      }
    }
    if (!v_.dw) return;
    gemm(ctx_, {vocabulary_, channels, rows}, {z_, dtype, dz_ld, true},
         {rows_of(v_.h, first), v_.h->dtype, v_.h->stride[0]},
         {v_.dw->data, v_.dw->dtype, channels}, {1, first ? 1.0 : 0.0});
  }

  // sum -= consistency_scale T mu, for the rows of the regularizers.
  void take_out_mean(int64_t first, int64_t rows) {
    const int64_t channels = v_.h->shape[1];
    const A factor = static_cast<A>(options_.consistency_scale * options_.temperature);
    for (int64_t i = 0; i < rows; ++i) {
      if (!v_.is_regularized(first + i)) continue;
      const A* mean = static_cast<const A*>(rows_of(v_.mean, first + i));
      for (int64_t c = 0; c < channels; ++c) sum_[i * channels + c] -= factor * mean[c];
    }
  }

  Context* ctx_;
  HeadViews v_;
  HeadOptions options_;
  int64_t vocabulary_, ld_, chunk_ = 0;
  bool rounds_ = false;  // dZ, to bf16
  bool tiled_ = false;   // dH = dZ W
  A *z_ = nullptr, *y_ = nullptr;
  A* sum_ = nullptr;  // of dH, a chunk
};

}  // namespace

namespace {

int32_t run_head(Context* ctx, const HeadViews& views, const View* scales, HeadOptions options) {
  if (scales) {
    const double* by = data_of<double>(scales);
    options.task_scale *= by[0];
    options.consistency_scale *= by[1];
    options.diversity_scale *= by[2];
  }
  const int64_t m = views.h->shape[0];
  check_targets(views, views.w->shape[0]);
  std::vector<double> own;
  double* terms = views.rows ? data_of<double>(views.rows) : nullptr;
  if (!terms) {
    own.resize(static_cast<size_t>(3 * m));
    terms = own.data();
  }
  if (views.h->dtype == BALORA_F64) {
    HeadChunks<double>(ctx, views, options).run(terms);
  } else {
    HeadChunks<float>(ctx, views, options).run(terms);
  }
  double* out = data_of<double>(views.sums);
  out[0] = out[1] = out[2] = 0;
  for (int64_t n = 0; n < m; ++n) {
    for (int i = 0; i < 3; ++i) out[i] += terms[3 * n + i];
  }
  out[3] = options.task_scale * out[0] + options.consistency_scale * out[1] -
           options.diversity_scale * out[2];
  return 0;
}

}  // namespace

int32_t head_losses_kernel(Context* ctx, const balora_head_losses& o) {
  return run_head(ctx, {o.h, o.ht, o.w, o.wt, o.targets, o.regularized, o.sums, o.rows, o.dh, o.dw},
                  o.scales, o.options);
}

int32_t head_losses_cached_kernel(Context* ctx, const balora_head_losses_cached& o) {
  return run_head(ctx,
                  {o.h, nullptr, o.w, nullptr, o.targets, o.regularized, o.sums, nullptr, o.dh,
                   nullptr, o.mean, o.entropy},
                  o.scales, o.options);
}

}  // namespace balora
