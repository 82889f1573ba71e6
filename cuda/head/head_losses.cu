// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T by cuBLAS in f32 (f64 for f64), one block a row
// for the statistics and dZ (head_rows.cuh), then dH = dZ W and dW += dZ^T H. With bf16 operands dZ
// is rounded to bf16 for the products, after p - 1 has been formed in f32. 6 M V C flops (4 without
// a teacher, 8 with dW) and 28 bytes an element of Z: at M = 8192, V = 128k, C = 4096 on one H100
// 37 ms of products and 9 ms of rows. W is read once a product and chunk, so a chunk has at least
// 384 rows where the caller leaves the budget to the device (the products would wait for memory
// with fewer), and 128 MiB of them: 0.5 GB with V = 128k and a teacher. A teacher may come as its
// summary (head_mean.cuh); then the second product and half of the rows' first pass are saved.
#include "head/head_chunks.cuh"
#include "head/head_mean.cuh"
#include "head/head_rows.cuh"

namespace balora::cuda {
namespace {

template <typename A>
__global__ void __launch_bounds__(kHeadThreads, 2) head_rows(HeadArgs<A> args) {
  SharedMemory memory;
  const HeadScratch<A> scratch = HeadScratch<A>::take(memory);
  HeadRowPass<A> pass(args, scratch);
  pass.run();
}

// One block: sums (4) of the rows' terms and the loss; each thread adds its rows in order.
__global__ void sum_terms(const double* terms, int64_t rows, double* sums, HeadOptions options,
                          const double* scales) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double totals[3];
  for (int term = 0; term < 3; ++term) {
    double sum = 0;
    for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) sum += terms[3 * row + term];
    totals[term] = block_reduce(sum, 0.0, scratch);
  }
  if (threadIdx.x != 0) return;
  for (int term = 0; term < 3; ++term) sums[term] = totals[term];
  const HeadOptions o = scaled_options(options, scales);
  sums[3] =
      o.task_scale * totals[0] + o.consistency_scale * totals[1] - o.diversity_scale * totals[2];
}

struct HeadViews {
  const View *h, *ht, *w, *wt, *targets, *regularized, *scales, *sums, *rows, *dh, *dw;
  const View *mean = nullptr, *entropy = nullptr;  // the teacher's summary, both or none

  const char* name() const { return mean ? "head_losses_cached" : "head_losses"; }
  bool wants_gradient() const { return dh || dw; }
};

template <typename A>
class HeadChunks {
 public:
  HeadChunks(Context* ctx, const HeadViews& views, const HeadOptions& options)
      : ctx_(ctx), v_(views) {
    const int64_t m = v_.h->shape[0];
    vocabulary_ = v_.w->shape[0], channels_ = v_.h->shape[1];
    const bool rounds =
        std::is_same_v<A, float> && v_.wants_gradient() && v_.w->dtype == BALORA_BF16;
    stride_ = logits_stride(vocabulary_);
    const int64_t row_bytes =
        stride_ * static_cast<int64_t>(sizeof(A) * (v_.ht ? 2 : 1) + (rounds ? 2 : 0));
    chunk_ = head_chunk_rows(options, m, row_bytes);
    args_.options = options;
    args_.z = workspace<A>(ctx, chunk_ * stride_);
    if (v_.ht) args_.y = y_ = workspace<A>(ctx, chunk_ * stride_);
    if (rounds) args_.rounded = workspace<bf16>(ctx, chunk_ * stride_);
    if (v_.dh && (v_.mean || (!rounds && v_.dh->dtype == BALORA_F16))) {
      sum_ = workspace<A>(ctx, chunk_ * channels_);
    }
    if (v_.mean) args_.offsets = offsets();
    args_.stride = stride_, args_.vocabulary = vocabulary_;
    args_.targets = data_of<int32_t>(v_.targets);
    args_.regularized = data_of<uint8_t>(v_.regularized);
    args_.scales = data_of<double>(v_.scales);
    args_.terms = v_.rows ? data_of<double>(v_.rows) : workspace<double>(ctx, 3 * m);
    args_.gradient = v_.wants_gradient();
    args_.fault = state_of(ctx).fault;
    args_.fault_row = fault_row(v_.name());
  }

  const double* run() {
    const int64_t m = v_.h->shape[0];
    for (int64_t first = 0; first < m; first += chunk_) {
      const int64_t rows = std::min(chunk_, m - first);
      multiply_head(*v_.h, *v_.w, first, rows, args_.z);
      if (v_.ht) multiply_head(*v_.ht, v_.wt ? *v_.wt : *v_.w, first, rows, y_);
      args_.first = first;
      const unsigned threads = head_row_threads(vocabulary_, kFewSelected, kHeadThreads);
      Grid grid{dim3(static_cast<unsigned>(rows)), dim3(threads), HeadScratch<A>::bytes()};
      launch(ctx_, v_.name(), grid, head_rows<A>, args_);
      if (v_.dh) hidden_gradient(first, rows);
      if (v_.dw) weight_gradient(first, rows);
    }
    return args_.terms;
  }

 private:
  static constexpr int32_t kLogits = std::is_same_v<A, double> ? BALORA_F64 : BALORA_F32;

  // (rows,C) x (V,C)^T -> logits (rows,V)
  void multiply_head(const View& h, const View& w, int64_t first, int64_t rows, A* logits) {
    gemm(ctx_, {rows, vocabulary_, channels_}, 1, rows_of(h, first),
         {w.data, w.dtype, channels_, true}, 0, {logits, kLogits, stride_});
  }
  GemmOperand dz(bool transposed) const {
    if (args_.rounded) return {args_.rounded, BALORA_BF16, stride_, transposed};
    return {args_.z, kLogits, stride_, transposed};
  }
  void hidden_gradient(int64_t first, int64_t rows) {
    void* to = offset_by(v_.dh->data, first * channels_, v_.dh->dtype);
    const GemmResult direct = {to, v_.dh->dtype, channels_};
    const GemmResult wide = {sum_, kLogits, channels_};
    gemm(ctx_, {rows, channels_, vocabulary_}, 1, dz(false), rows_of(*v_.w, 0), 0,
         sum_ ? wide : direct);
    if (v_.mean) return without_mean(first, rows);
    if (!sum_) return;
    convert_matrix(ctx_, rows, channels_, {sum_, kLogits, channels_},
                   {to, v_.dh->dtype, channels_});
  }
  // Calls body<T>() for the type of the hidden states, which A fixes for f64.
  template <typename Body>
  void dispatch_hidden(const Body& body) const {
    if constexpr (std::is_same_v<A, double>) {
      body.template operator()<double>();
    } else {
      dispatch_float(v_.h->dtype, [&]<typename T>() {
        if constexpr (!std::is_same_v<T, double>) body.template operator()<T>();
      });
    }
  }
  const double* offsets() {
    const int64_t m = v_.h->shape[0];
    auto* offsets = workspace<double>(ctx_, m);
    dispatch_hidden([&]<typename T>() {
      launch(ctx_, v_.name(), {dim3(static_cast<unsigned>(m)), dim3(kMeanThreads)},
             teacher_offsets<T>, data_of<T>(v_.h), data_of<A>(v_.mean), data_of<double>(v_.entropy),
             channels_, args_.options.temperature, offsets);
    });
    return offsets;
  }
  // dH = sum - consistency_scale T mu
  void without_mean(int64_t first, int64_t rows) {
    const int64_t at = first * channels_;
    dispatch_hidden([&]<typename T>() {
      launch(ctx_, v_.name(), {dim3(static_cast<unsigned>(rows)), dim3(kMeanThreads)},
             take_out_mean<T>, sum_, data_of<A>(v_.mean) + at,
             args_.regularized ? args_.regularized + first : nullptr, channels_, args_.options,
             args_.scales, data_of<T>(v_.dh) + at);
    });
  }
  void weight_gradient(int64_t first, int64_t rows) {
    gemm(ctx_, {vocabulary_, channels_, rows}, 1, dz(true), rows_of(*v_.h, first), first ? 1 : 0,
         {v_.dw->data, v_.dw->dtype, channels_});
  }

  Context* ctx_;
  HeadViews v_;
  HeadArgs<A> args_{};
  A* y_ = nullptr;
  A* sum_ = nullptr;  // of dH where it is not the product's own result
  int64_t vocabulary_, channels_, stride_, chunk_;
};

int32_t run_head(Context* ctx, const HeadViews& views, const HeadOptions& options) {
  const double* terms = views.h->dtype == BALORA_F64 ? HeadChunks<double>(ctx, views, options).run()
                                                     : HeadChunks<float>(ctx, views, options).run();
  launch(ctx, views.name(), {dim3(1), dim3(256)}, sum_terms, terms, views.h->shape[0],
         data_of<double>(views.sums), options, data_of<double>(views.scales));
  return 0;
}

}  // namespace

int32_t head_losses_kernel(Context* ctx, const balora_head_losses& o) {
  return run_head(
      ctx, {o.h, o.ht, o.w, o.wt, o.targets, o.regularized, o.scales, o.sums, o.rows, o.dh, o.dw},
      o.options);
}

int32_t head_losses_cached_kernel(Context* ctx, const balora_head_losses_cached& o) {
  return run_head(ctx,
                  {o.h, nullptr, o.w, nullptr, o.targets, o.regularized, o.scales, o.sums, nullptr,
                   o.dh, nullptr, o.mean, o.entropy},
                  o.options);
}

}  // namespace balora::cuda
