// Language-model head and losses without the (M,V) logits: rows go through in chunks of a byte
// budget. For each chunk Z = H W^T and Y = Ht Wt^T by cuBLAS in f32 (f64 for f64), one block a row
// for the statistics and dZ (head_rows.cu), then dH = dZ W and dW += dZ^T H. With bf16 operands dZ
// is rounded to bf16 for the products, after p - 1 has been formed in f32. 6 M V C flops (4 without
// a teacher, 8 with dW) and 28 bytes an element of Z: at M = 8192, V = 128k, C = 4096 on one H100
// 37 ms of products and 9 ms of rows. W is read once a product and chunk, so a chunk has at least
// 384 rows where the caller leaves the budget to the device (the products would wait for memory
// with fewer), and 128 MiB of them: 0.5 GB with V = 128k and a teacher.
// A teacher may come as its summary (teacher_summary.cu), its entropy H(q) and mean row mu = sum_j
// q_j w_j; then the second product and half of the rows' first pass are saved. KL(q || p) =
// lse(z/T) - (H(q) + h mu / T), so the row's pass wants one number, and mu leaves dH as it came
// into h mu. Both kernels read h or dH and mu once, by one block a row: 6 and 10 bytes an element
// with bf16, together 0.2 ms of an H100 at M = 8192, C = 4096. A product of h and mu is exact in
// f64, where they are summed.
#include <optional>

#include "head/head_chunks.cuh"
#include "head/head_rows.cuh"

namespace balora::cuda {
namespace {

constexpr int kMeanThreads = 128;

// offset (M) f64 = T H(q) + h mu
template <typename T>
__global__ void teacher_offsets(const T* h, const Acc<T>* mean, const double* entropy,
                                int64_t channels, double temperature, double* offset) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const int64_t row = blockIdx.x, first = row * channels;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
    sum += static_cast<double>(load(h[first + c])) * static_cast<double>(mean[first + c]);
  }
  sum = block_reduce(sum, 0.0, scratch);
  if (threadIdx.x == 0) offset[row] = temperature * entropy[row] + sum;
}

// dh = sum - consistency_scale T mu, rounded once; rows outside the regularizers (u8, null: none)
// are sum alone.
template <typename T>
__global__ void subtract_mean(const Acc<T>* sum, const Acc<T>* mean, const uint8_t* regularized,
                              int64_t channels, HeadOptions options, const double* scales, T* dh) {
  const HeadOptions o = scaled_options(options, scales);
  const auto factor = static_cast<Acc<T>>(o.consistency_scale * o.temperature);
  const int64_t row = blockIdx.x, first = row * channels;
  const bool inside = !regularized || regularized[row] != 0;
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
    const Acc<T> value = sum[first + c];
    dh[first + c] = store<T>(inside ? value - factor * mean[first + c] : value);
  }
}

// One block: sums (4) of the rows' terms and the loss; each thread adds its rows in order.
__global__ void sum_terms(const double* terms, int64_t rows, double* sums, HeadOptions options,
                          const double* scales) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double totals[BALORA_HEAD_TERMS];
  for (int term = 0; term < BALORA_HEAD_TERMS; ++term) {
    double sum = 0;
    for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
      sum += terms[BALORA_HEAD_TERMS * row + term];
    }
    totals[term] = block_reduce(sum, 0.0, scratch);
  }
  if (threadIdx.x != 0) return;
  for (int term = 0; term < BALORA_HEAD_TERMS; ++term) sums[term] = totals[term];
  const HeadOptions o = scaled_options(options, scales);
  sums[BALORA_HEAD_LOSS] = o.task_scale * totals[BALORA_HEAD_TASK] +
                           o.consistency_scale * totals[BALORA_HEAD_CONSISTENCY] -
                           o.diversity_scale * totals[BALORA_HEAD_ENTROPY];
}

constexpr const char* kName = "head_losses";

template <typename A>
class HeadChunks {
 public:
  HeadChunks(Context* ctx, const balora_head_losses& operands)
      : ctx_(ctx), o_(operands), w_(ctx, *operands.w) {
    if (t_.head) wt_.emplace(ctx, *t_.head);
    const int64_t m = o_.h->shape[0];
    vocabulary_ = o_.w->shape[0], channels_ = o_.h->shape[1];
    const bool gradient = o_.dh || o_.dw;
    const bool rounds = std::is_same_v<A, float> && gradient && o_.w->dtype == BALORA_BF16;
    stride_ = logits_stride(vocabulary_);
    const int64_t row_bytes =
        stride_ * static_cast<int64_t>(sizeof(A) * (live_ ? 2 : 1) + (rounds ? 2 : 0));
    chunk_ = head_chunk_rows(o_.options, m, row_bytes);
    args_.options = o_.options;
    args_.z = workspace<A>(ctx, chunk_ * stride_);
    if (live_) args_.y = y_ = workspace<A>(ctx, chunk_ * stride_);
    if (rounds) args_.rounded = workspace<bf16>(ctx, chunk_ * stride_);
    const bool narrow = o_.dh && o_.dh->dtype != kLogits && (!rounds || w_.adds_up());
    if (o_.dh && (t_.mean || narrow)) {
      sum_ = workspace<A>(ctx, chunk_ * channels_);
    }
    if (t_.mean) args_.offsets = offsets();
    args_.stride = stride_, args_.vocabulary = vocabulary_;
    args_.targets = data_of<int32_t>(o_.targets);
    args_.regularized = data_of<uint8_t>(o_.regularized);
    args_.scales = data_of<double>(o_.scales);
    args_.terms =
        o_.rows ? data_of<double>(o_.rows) : workspace<double>(ctx, BALORA_HEAD_TERMS * m);
    args_.gradient = gradient;
    args_.fault = state_of(ctx).fault;
    args_.fault_row = fault_row(kName);
  }

  const double* run() {
    const int64_t m = o_.h->shape[0];
    for (int64_t first = 0; first < m; first += chunk_) {
      const int64_t rows = std::min(chunk_, m - first);
      multiply_head(first, rows);
      args_.first = first;
      launch_head_rows(ctx_, kName, args_, rows);
      if (o_.dh) hidden_gradient(first, rows);
      if (o_.dw) weight_gradient(first, rows);
    }
    return args_.terms;
  }

 private:
  static constexpr int32_t kLogits = kDtypeOfAcc<A>;

  void multiply_head(int64_t first, int64_t rows) {
    const HeadWeight::Logits student = {rows_of(*o_.h, first), args_.z};
    if (!live_) return w_.logits({student}, rows, kLogits, stride_);
    const HeadWeight::Logits teacher = {rows_of(*t_.hidden, first), y_};
    if (!wt_) return w_.logits({student, teacher}, rows, kLogits, stride_);
    w_.logits({student}, rows, kLogits, stride_);
    wt_->logits({teacher}, rows, kLogits, stride_);
  }
  GemmOperand dz(bool transposed) const {
    if (args_.rounded) return {args_.rounded, BALORA_BF16, stride_, transposed};
    return {args_.z, kLogits, stride_, transposed};
  }
  void hidden_gradient(int64_t first, int64_t rows) {
    void* to = offset_by(o_.dh->data, first * channels_, o_.dh->dtype);
    const GemmResult direct = {to, o_.dh->dtype, channels_};
    const GemmResult wide = {sum_, kLogits, channels_};
    w_.back(dz(false), rows, 0, sum_ ? wide : direct);
    if (t_.mean) return without_mean(first, rows);
    if (!sum_) return;
    convert_matrix(ctx_, rows, channels_, {sum_, kLogits, channels_},
                   {to, o_.dh->dtype, channels_});
  }
  // Calls body<T>() for the type of the hidden states, which A fixes for f64.
  template <typename Body>
  void dispatch_hidden(const Body& body) const {
    if constexpr (std::is_same_v<A, double>) {
      body.template operator()<double>();
    } else {
      dispatch_float(o_.h->dtype, [&]<typename T>() {
        if constexpr (!std::is_same_v<T, double>) body.template operator()<T>();
      });
    }
  }
  const double* offsets() {
    const int64_t m = o_.h->shape[0];
    auto* offsets = workspace<double>(ctx_, m);
    dispatch_hidden([&]<typename T>() {
      launch(ctx_, kName, {dim3(static_cast<unsigned>(m)), dim3(kMeanThreads)}, teacher_offsets<T>,
             data_of<T>(o_.h), data_of<A>(t_.mean), data_of<double>(t_.entropy), channels_,
             args_.options.temperature, offsets);
    });
    return offsets;
  }
  // dH = sum - consistency_scale T mu
  void without_mean(int64_t first, int64_t rows) {
    const int64_t at = first * channels_;
    dispatch_hidden([&]<typename T>() {
      launch(ctx_, kName, {dim3(static_cast<unsigned>(rows)), dim3(kMeanThreads)}, subtract_mean<T>,
             sum_, data_of<A>(t_.mean) + at,
             args_.regularized ? args_.regularized + first : nullptr, channels_, args_.options,
             args_.scales, data_of<T>(o_.dh) + at);
    });
  }
  void weight_gradient(int64_t first, int64_t rows) {
    gemm(ctx_, {vocabulary_, channels_, rows}, 1, dz(true), rows_of(*o_.h, first), first ? 1 : 0,
         {o_.dw->data, o_.dw->dtype, channels_});
  }

  Context* ctx_;
  const balora_head_losses& o_;
  const balora_teacher& t_ = o_.teacher;
  bool live_ = t_.kind == BALORA_TEACHER_LIVE;
  HeadWeight w_;
  std::optional<HeadWeight> wt_;  // the teacher's, where it is another
  HeadArgs<A> args_{};
  A* y_ = nullptr;
  A* sum_ = nullptr;  // of dH where it is not the product's own result
  int64_t vocabulary_, channels_, stride_, chunk_;
};

}  // namespace

int32_t head_losses_kernel(Context* ctx, const balora_head_losses& o) {
  if (o.factors) throw UnsupportedError("head_losses: factors of rows are taken on the CPU alone");
  refuse_logit_scale("head_losses", o.options);
  const double* terms =
      o.h->dtype == BALORA_F64 ? HeadChunks<double>(ctx, o).run() : HeadChunks<float>(ctx, o).run();
  launch(ctx, kName, {dim3(1), dim3(256)}, sum_terms, terms, o.h->shape[0], data_of<double>(o.sums),
         o.options, data_of<double>(o.scales));
  return 0;
}

}  // namespace balora::cuda
