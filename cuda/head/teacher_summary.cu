// A teacher as its student's consistency term needs it: q's entropy and the mean of the frozen
// head's rows under q = softmax(y / T), without the (M,V) logits. Rows go through in chunks
// (head_chunks.cuh): Y = Ht Wt^T in f32 (f64 for f64), one block a row for maximum and sums in one
// pass and q in a second, then mean = q W. With a bf16 head q becomes a pair of bf16 (16 bits) and
// its product two on the tensor cores, an eighth of what one in f32 takes; else q lies over Y. 6 M
// V C flops (4 with one product) and 16 bytes an element of Y: at M = 8192, V = 128k, C = 4096 on
// one H100 37 ms of products and 5 ms of rows, once a training run.
#include <optional>

#include "head/head_chunks.cuh"
#include "head/head_sums.cuh"

namespace balora::cuda {
namespace {

constexpr int kTeacherThreads = 512;
constexpr int kPacksToFlush = 32;

template <typename A>
struct TeacherArgs {
  A* y;              // q lies over it where there is no pair
  bf16 *high, *low;  // q as a sum of two, or null
  double* entropy;   // of the chunk's rows
  int64_t stride, vocabulary;
  double temperature;
};

template <typename A>
class TeacherRowPass {
 public:
  __device__ TeacherRowPass(const TeacherArgs<A>& args, A* maxima, double* sums)
      : args_(args), maxima_(maxima), scratch_(sums), row_(blockIdx.x) {
    y_ = {args.y + row_ * args.stride, args.vocabulary, A(0), A(0)};
    scale_ = static_cast<A>(1 / args.temperature);
  }

  __device__ void run() {
    gather();
    const A max = block_reduce(max_, A(-INFINITY), maxima_, Max{});
    if (max_ > -INFINITY) sums_.rescale(max - max_, scale_);
    const double weights = block_reduce(sums_.weights.whole, 0.0, scratch_);
    const double values = block_reduce(sums_.values.whole, 0.0, scratch_);
    const double log_sum = log(weights);
    if (threadIdx.x == 0) {
      args_.entropy[row_] = log_sum - values / weights * static_cast<double>(scale_);
    }
    write(max, static_cast<A>(exp(-log_sum)));
  }

 private:
  // Sums of w = e^((y - max) / T) and of w (y - max).
  __device__ void gather() {
    int since = 0;
    for (int64_t pack = threadIdx.x; pack * kHeadPack < args_.vocabulary; pack += blockDim.x) {
      A y[kHeadPack];
      const int count = y_.load_pack(pack, y);
      raise(y, count);
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) {
        if (i >= count) continue;
        const A offset = y[i] - max_, w = exp_or_zero(offset * scale_);
        sums_.weights += w;
        sums_.values += w * offset;
      }
      if (++since == kPacksToFlush) {
        since = 0;
        sums_.flush();
      }
    }
    sums_.flush();
  }

  __device__ void raise(const A (&y)[kHeadPack], int count) {
    A largest = y[0];
    BALORA_UNROLL
    for (int i = 1; i < kHeadPack; ++i) largest = i < count && y[i] > largest ? y[i] : largest;
    if (!(largest > max_)) return;
    if (max_ > -INFINITY) sums_.rescale(largest - max_, scale_);
    max_ = largest;
  }

  // A row's stride is a multiple of the pack: the last one may run into its padding.
  __device__ void write(A shift, A factor) const {
    const int64_t first = row_ * args_.stride;
    for (int64_t pack = threadIdx.x; pack * kHeadPack < args_.vocabulary; pack += blockDim.x) {
      A y[kHeadPack];
      const int count = y_.load_pack(pack, y);
      Pack<A, kHeadPack> q;
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) {
        q.at[i] = i < count ? factor * exp_or_zero((y[i] - shift) * scale_) : A(0);
      }
      const int64_t at = first + pack * kHeadPack;
      if (!args_.high) {
        *reinterpret_cast<Pack<A, kHeadPack>*>(args_.y + at) = q;
        continue;
      }
      Pack<bf16, kHeadPack> high, low;
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) {
        const float value = static_cast<float>(q.at[i]);
        high.at[i] = store<bf16>(value);
        low.at[i] = store<bf16>(value - load(high.at[i]));
      }
      *reinterpret_cast<Pack<bf16, kHeadPack>*>(args_.high + at) = high;
      *reinterpret_cast<Pack<bf16, kHeadPack>*>(args_.low + at) = low;
    }
  }

  const TeacherArgs<A>& args_;
  A* maxima_;
  double* scratch_;
  int64_t row_;
  HeadLogits<A> y_;
  A scale_, max_ = -INFINITY;
  Weighted<A> sums_;
};

template <typename A>
__global__ void __launch_bounds__(kTeacherThreads, 2) teacher_rows(TeacherArgs<A> args) {
  BALORA_SHARED(A, maxima, kWarp + 1);
  BALORA_SHARED(double, sums, kWarp + 1);
  TeacherRowPass<A> pass(args, maxima, sums);
  pass.run();
}

template <typename A>
void summarize(Context* ctx, const balora_teacher_summary& o) {
  constexpr int32_t kLogits = kDtypeOfAcc<A>;
  if (o.targets) {
    throw UnsupportedError(
        "teacher_summary: log-probabilities of targets are taken on the CPU alone");
  }
  refuse_logit_scale("teacher_summary", o.options);
  const View &ht = *o.teacher.hidden, &w = *o.w;
  const View& wt = o.teacher.head ? *o.teacher.head : w;
  HeadWeight head(ctx, w);
  std::optional<HeadWeight> other;
  if (wt.data != w.data) other.emplace(ctx, wt);
  HeadWeight& teacher_head = other ? *other : head;
  const int64_t m = ht.shape[0], vocabulary = w.shape[0], channels = w.shape[1];
  const int64_t stride = logits_stride(vocabulary);
  const bool pair = std::is_same_v<A, float> && w.dtype == BALORA_BF16;
  const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(A) + (pair ? 4 : 0));
  const int64_t chunk = head_chunk_rows(o.options, m, row_bytes);
  TeacherArgs<A> args{};
  args.y = workspace<A>(ctx, chunk * stride);
  if (pair) {
    args.high = workspace<bf16>(ctx, chunk * stride);
    args.low = workspace<bf16>(ctx, chunk * stride);
  }
  args.stride = stride, args.vocabulary = vocabulary, args.temperature = o.options.temperature;
  const unsigned threads = head_row_threads(vocabulary, kWarp, kTeacherThreads);
  for (int64_t first = 0; first < m; first += chunk) {
    const int64_t rows = std::min(chunk, m - first);
    teacher_head.logits({{rows_of(ht, first), args.y}}, rows, kLogits, stride);
    args.entropy = data_of<double>(o.summary.entropy) + first;
    launch(ctx, "teacher_summary", {dim3(static_cast<unsigned>(rows)), dim3(threads)},
           teacher_rows<A>, args);
    const GemmResult to = {data_of<A>(o.summary.mean) + first * channels, kLogits, channels};
    if (!pair) {
      head.back(GemmOperand{args.y, kLogits, stride}, rows, 0, to);
      continue;
    }
    head.back(GemmOperand{args.low, BALORA_BF16, stride}, rows, 0, to);
    head.back(GemmOperand{args.high, BALORA_BF16, stride}, rows, 1, to);
  }
}

}  // namespace

int32_t teacher_summary_kernel(Context* ctx, const balora_teacher_summary& o) {
  if (o.teacher.hidden->dtype == BALORA_F64) {
    summarize<double>(ctx, o);
  } else {
    summarize<float>(ctx, o);
  }
  return 0;
}

}  // namespace balora::cuda
