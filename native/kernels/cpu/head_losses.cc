// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T, one pass for the statistics, one that writes dZ
// over Z, then dH = dZ W and dW += dZ^T H. Logits are f32 (f64 when H is f64) and never leave the
// chunk; with bf16 weights dZ is rounded to bf16 for the product, after p - 1 has been formed in
// f32, each row in the first half of its own place.
#include <algorithm>
#include <vector>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/head_rows.h"
#include "kernels/cpu/head_tiles.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/product_sum.h"

namespace balora {
namespace {

constexpr int64_t kDefaultChunkBytes = int64_t{48} << 20;
constexpr int64_t kRowMultiple = 16;

struct HeadViews {
  const View *h, *ht, *w, *wt, *targets, *regularized, *sums, *rows, *dh, *dw;

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

// The same rows of a matrix, as a pointer.
const void* rows_of(const View* view, int64_t row) {
  return static_cast<const char*>(view->data) +
         row * view->stride[0] * dtype_size(static_cast<DType>(view->dtype));
}

template <typename A>
constexpr int32_t dtype_of_logits() {
  return std::is_same_v<A, double> ? BALORA_F64 : BALORA_F32;
}

// (rows,C) x (V,C)^T -> logits (rows,V)
template <typename A>
void multiply_head(Context* ctx, const View* h, int64_t first, int64_t rows, const View* w,
                   A* logits) {
  const ProductTerm term{rows_of(h, first), h->dtype, h->stride[0], w, true};
  sum_products(ctx, {rows, w->shape[0], {&term, 1}}, {logits, dtype_of_logits<A>(), w->shape[0]});
}

template <typename A>
class HeadChunks {
 public:
  HeadChunks(Context* ctx, const HeadViews& views, const HeadOptions& options)
      : ctx_(ctx), v_(views), options_(options), vocabulary_(views.w->shape[0]) {
    rounds_ = std::is_same_v<A, float> && wants_gradient() && v_.w->dtype == BALORA_BF16 &&
              cpu_multiplies_bf16();
    const int64_t m = v_.h->shape[0];
    const int64_t row_bytes = vocabulary_ * static_cast<int64_t>(sizeof(A) * (v_.ht ? 2 : 1));
    const int64_t budget = options.chunk_bytes > 0 ? options.chunk_bytes : kDefaultChunkBytes;
    int64_t rows = std::max<int64_t>(1, budget / row_bytes);
    if (rows > kRowMultiple) rows -= rows % kRowMultiple;
    chunk_ = std::min(rows, m);
    z_ = scratch<A>(chunk_ * vocabulary_);
    if (v_.ht) y_ = scratch<A>(chunk_ * vocabulary_);
    if constexpr (std::is_same_v<A, float>) tiled_ = fits_tiles();
    if (tiled_ && v_.dh) sum_ = scratch<A>(chunk_ * v_.h->shape[1]);
  }

  void run(double* row_terms) {
    for (int64_t first = 0; first < v_.h->shape[0]; first += chunk_) {
      const int64_t rows = std::min(chunk_, v_.h->shape[0] - first);
      make_logits(first, rows);
      parallel_for(ctx_, rows, 1, [&](int64_t begin, int64_t end) {
        HeadRows<A> head(options_, vocabulary_);
        for (int64_t i = begin; i < end; ++i) {
          take_row(head, first + i, z_ + i * vocabulary_, v_.ht ? y_ + i * vocabulary_ : nullptr,
                   row_terms + 3 * (first + i));
        }
      });
      if (wants_gradient()) multiply_back(first, rows);
    }
  }

 private:
  bool wants_gradient() const { return v_.dh || v_.dw; }

  template <typename T>
  T* scratch(int64_t count) {
    void* memory = ctx_->workspace(ctx_, static_cast<uint64_t>(count) * sizeof(T));
    if (!memory) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }

  bool fits_tiles() const {
    const View* wt = v_.wt ? v_.wt : v_.w;
    return head_fits_tiles(*v_.h, *v_.w) && (!v_.ht || head_fits_tiles(*v_.ht, *wt));
  }

  void make_logits(int64_t first, int64_t rows) {
    const View* wt = v_.wt ? v_.wt : v_.w;
    if constexpr (std::is_same_v<A, float>) {
      if (tiled_) {
        const auto logits = [&](const View* h, A* z) {
          return HeadLogits{static_cast<const bf16*>(rows_of(h, first)), h->stride[0], z};
        };
        std::vector<HeadLogits> products = {logits(v_.h, z_)};
        if (v_.ht && wt == v_.w) products.push_back(logits(v_.ht, y_));
        head_logits_tiles(ctx_, products, rows, *v_.w);
        if (!v_.ht || wt == v_.w) return;
        products = {logits(v_.ht, y_)};
        return head_logits_tiles(ctx_, products, rows, *wt);
      }
    }
    multiply_head(ctx_, v_.h, first, rows, v_.w, z_);
    if (v_.ht) multiply_head(ctx_, v_.ht, first, rows, wt, y_);
  }

  void take_row(HeadRows<A>& head, int64_t row, A* z, A* y, double* terms) const {
    const int64_t target = v_.target(row);
    const bool regularized = v_.is_regularized(row);
    head.cap(z);
    if (y) head.cap(y);
    const HeadRow found = head.statistics(z, y, target, regularized);
    terms[0] = found.task;
    terms[1] = found.consistency;
    terms[2] = found.entropy;
    if (!wants_gradient()) return;
    head.gradient(z, y, target, regularized, found);
    // An element is written no further on than it is read.
    if (rounds_) {
      convert_rows(nullptr, z, BALORA_F32, vocabulary_, z, BALORA_BF16, vocabulary_, 1,
                   vocabulary_);
    }
  }

  void multiply_back(int64_t first, int64_t rows) {
    const int32_t dtype = rounds_ ? static_cast<int32_t>(BALORA_BF16) : dtype_of_logits<A>();
    const int64_t dz_ld = rounds_ ? 2 * vocabulary_ : vocabulary_;
    const int64_t channels = v_.h->shape[1];
    if (v_.dh) {
      const GemmOutput dh = {const_cast<void*>(rows_of(v_.dh, first)), v_.dh->dtype, channels};
      if constexpr (std::is_same_v<A, float>) {
        if (tiled_) {
          const auto* rounded = reinterpret_cast<const bf16*>(z_);
          head_gradient_tiles(ctx_, rounded, dz_ld, rows, *v_.w, sum_);
          convert_rows(ctx_, sum_, BALORA_F32, channels, dh.data, dh.dtype, channels, rows,
                       channels);
        }
      }
      const ProductTerm term{z_, dtype, dz_ld, v_.w};
      if (!tiled_) sum_products(ctx_, {rows, channels, {&term, 1}}, dh);
    }
    if (!v_.dw) return;
    gemm(ctx_, {vocabulary_, channels, rows}, {z_, dtype, dz_ld, true},
         {rows_of(v_.h, first), v_.h->dtype, v_.h->stride[0]},
         {v_.dw->data, v_.dw->dtype, channels}, {1, first ? 1.0 : 0.0});
  }

  Context* ctx_;
  HeadViews v_;
  HeadOptions options_;
  int64_t vocabulary_, chunk_ = 0;
  bool rounds_ = false;  // dZ, to bf16
  bool tiled_ = false;   // implies rounds_ where a gradient is wanted
  A *z_ = nullptr, *y_ = nullptr;
  A* sum_ = nullptr;  // of dH, a chunk
};

}  // namespace

int32_t head_losses_kernel(Context* ctx, const View* h, const View* ht, const View* w,
                           const View* wt, const View* targets, const View* regularized,
                           const View* sums, const View* rows, const View* dh, const View* dw,
                           const HeadOptions* options) {
  const HeadViews views{h, ht, w, wt, targets, regularized, sums, rows, dh, dw};
  const int64_t m = h->shape[0];
  check_targets(views, w->shape[0]);
  std::vector<double> own;
  double* terms = rows ? data_of<double>(rows) : nullptr;
  if (!terms) {
    own.resize(static_cast<size_t>(3 * m));
    terms = own.data();
  }
  if (h->dtype == BALORA_F64) {
    HeadChunks<double>(ctx, views, *options).run(terms);
  } else {
    HeadChunks<float>(ctx, views, *options).run(terms);
  }
  double* out = data_of<double>(sums);
  out[0] = out[1] = out[2] = 0;
  for (int64_t n = 0; n < m; ++n) {
    for (int i = 0; i < 3; ++i) out[i] += terms[3 * n + i];
  }
  out[3] = options->task_scale * out[0] + options->consistency_scale * out[1] -
           options->diversity_scale * out[2];
  return 0;
}

int32_t scale_by_kernel(Context* ctx, const View* x, const View* factor, const View* y) {
  const double by = *data_of<double>(factor);
  dispatch_float(x->dtype, [&]<typename T>() {
    const T* in = data_of<T>(x);
    T* out = data_of<T>(y);
    parallel_for(ctx, view_numel(*x), 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        out[i] = store<T>(load(in[i]) * static_cast<Acc<T>>(by));
    });
  });
  return 0;
}

}  // namespace balora
