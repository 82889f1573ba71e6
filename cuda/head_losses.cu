// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T by cuBLAS in f32 (f64 for f64), one block a row
// for the statistics and dZ (head_rows.cuh), then dH = dZ W and dW += dZ^T H. With bf16 operands dZ
// is rounded to bf16 for the products, after p - 1 has been formed in f32. 6 M V C flops (4 without
// a teacher, 8 with dW) and 28 bytes an element of Z: at M = 8192, V = 128k, C = 4096 on one H100
// 37 ms of products and 9 ms of rows. W is read once a product and chunk, so a chunk has at least
// 384 rows where the caller leaves the budget to the device (the products would wait for memory
// with fewer), and 128 MiB of them: 0.5 GB with V = 128k and a teacher.
#include "blas.cuh"
#include "head_rows.cuh"

namespace balora::cuda {
namespace {

constexpr int64_t kDefaultChunkBytes = int64_t{128} << 20;
constexpr int64_t kLeastRows = 384;

template <typename A>
__global__ void __launch_bounds__(kHeadThreads, 2) head_rows(HeadArgs<A> args) {
  SharedMemory memory;
  const HeadScratch<A> scratch = HeadScratch<A>::take(memory);
  HeadRowPass<A> pass(args, scratch);
  pass.run();
}

// One block: sums (4) of the rows' terms and the loss; each thread adds its rows in order.
__global__ void sum_terms(const double* terms, int64_t rows, double* sums, HeadOptions options) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double totals[3];
  for (int term = 0; term < 3; ++term) {
    double sum = 0;
    for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) sum += terms[3 * row + term];
    totals[term] = block_reduce(sum, 0.0, scratch);
  }
  if (threadIdx.x != 0) return;
  for (int term = 0; term < 3; ++term) sums[term] = totals[term];
  sums[3] = options.task_scale * totals[0] + options.consistency_scale * totals[1] -
            options.diversity_scale * totals[2];
}

struct HeadViews {
  const View *h, *ht, *w, *wt, *targets, *regularized, *sums, *rows, *dh, *dw;

  bool wants_gradient() const { return dh || dw; }
};

GemmOperand rows_of(const View& view, int64_t first) {
  const int64_t cols = view.shape[1];
  return {offset_by(view.data, first * cols, view.dtype), view.dtype, cols};
}

template <typename A>
class HeadChunks {
 public:
  HeadChunks(Context* ctx, const HeadViews& views, const HeadOptions& options)
      : ctx_(ctx), v_(views) {
    const int64_t m = v_.h->shape[0];
    vocabulary_ = v_.w->shape[0], channels_ = v_.h->shape[1];
    const bool rounds =
        std::is_same_v<A, float> && v_.wants_gradient() && v_.w->dtype == BALORA_BF16;
    stride_ = ceil_div(vocabulary_, 8) * 8;  // rows start at 16-byte addresses
    const int64_t row_bytes =
        stride_ * static_cast<int64_t>(sizeof(A) * (v_.ht ? 2 : 1) + (rounds ? 2 : 0));
    int64_t rows = std::max<int64_t>(options.chunk_bytes / row_bytes, 1);
    if (options.chunk_bytes <= 0) rows = std::max(kDefaultChunkBytes / row_bytes, kLeastRows);
    if (rows > 128) rows -= rows % 128;
    chunk_ = std::min(rows, m);
    args_.z = workspace<A>(ctx, chunk_ * stride_);
    if (v_.ht) args_.y = y_ = workspace<A>(ctx, chunk_ * stride_);
    if (rounds) args_.rounded = workspace<bf16>(ctx, chunk_ * stride_);
    if (v_.dh && !rounds && v_.dh->dtype == BALORA_F16) {
      sum_ = workspace<float>(ctx, chunk_ * channels_);
    }
    args_.stride = stride_, args_.vocabulary = vocabulary_;
    args_.targets = data_of<int32_t>(v_.targets);
    args_.regularized = data_of<uint8_t>(v_.regularized);
    args_.terms = v_.rows ? data_of<double>(v_.rows) : workspace<double>(ctx, 3 * m);
    args_.options = options;
    args_.gradient = v_.wants_gradient();
    args_.fault = state_of(ctx).fault;
    args_.fault_row = fault_row("head_losses");
  }

  const double* run() {
    const int64_t m = v_.h->shape[0];
    for (int64_t first = 0; first < m; first += chunk_) {
      const int64_t rows = std::min(chunk_, m - first);
      multiply_head(*v_.h, *v_.w, first, rows, args_.z);
      if (v_.ht) multiply_head(*v_.ht, v_.wt ? *v_.wt : *v_.w, first, rows, y_);
      args_.first = first;
      const int64_t packs = ceil_div(vocabulary_, kHeadPack * kWarp) * kWarp;
      const auto threads = std::clamp<int64_t>(packs, kFewSelected, kHeadThreads);
      Grid grid{dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(threads)),
                HeadScratch<A>::bytes()};
      launch(ctx_, "head_losses", grid, head_rows<A>, args_);
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
    const GemmResult wide = {sum_, BALORA_F32, channels_};
    gemm(ctx_, {rows, channels_, vocabulary_}, 1, dz(false), rows_of(*v_.w, 0), 0,
         sum_ ? wide : direct);
    if (!sum_) return;
    convert_matrix(ctx_, rows, channels_, sum_, BALORA_F32, channels_, to, v_.dh->dtype, channels_);
  }
  void weight_gradient(int64_t first, int64_t rows) {
    gemm(ctx_, {vocabulary_, channels_, rows}, 1, dz(true), rows_of(*v_.h, first), first ? 1 : 0,
         {v_.dw->data, v_.dw->dtype, channels_});
  }

  Context* ctx_;
  HeadViews v_;
  HeadArgs<A> args_{};
  A* y_ = nullptr;
  float* sum_ = nullptr;  // of dH where it is narrower than its sums and dZ is not
  int64_t vocabulary_, channels_, stride_, chunk_;
};

}  // namespace

int32_t head_losses_kernel(Context* ctx, const View* h, const View* ht, const View* w,
                           const View* wt, const View* targets, const View* regularized,
                           const View* sums, const View* rows, const View* dh, const View* dw,
                           const HeadOptions* options) {
  const HeadViews views{h, ht, w, wt, targets, regularized, sums, rows, dh, dw};
  const double* terms = h->dtype == BALORA_F64 ? HeadChunks<double>(ctx, views, *options).run()
                                               : HeadChunks<float>(ctx, views, *options).run();
  launch(ctx, "head_losses", {dim3(1), dim3(256)}, sum_terms, terms, h->shape[0],
         data_of<double>(sums), *options);
  return 0;
}

}  // namespace balora::cuda
