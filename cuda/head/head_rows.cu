// One row of the fused head losses on the device, by one block: the statistics of its student
// logits z (V) and teacher logits y (V), and the gradient written over z (or rounded to bf16 beside
// it) in a second pass; formulas in native/kernels/cpu/head/rows.cc. A teacher that came as
// its summary has no y: its part of the gradient is taken out of dH (head_losses.cu). Sums over the
// vocabulary run in f32 for 128 elements of a thread, then in f64, beside a running maximum; with a
// teacher a pass before them finds the maxima. A pass reads 8 bytes an element (4 without a
// teacher); the last writes 2 (bf16) or 4: 26 bytes and about seven exponentials in all.
#include "head/head_rows.cuh"

#include "head/head_sums.cuh"
#include "kernels/shared/divergence.h"

namespace balora::cuda {
namespace {

constexpr int kHeadThreads = 512;  // at most, and at least kFewSelected
constexpr int kFewSelected = 128;
constexpr int kCandidates = 1024;

template <typename A>
struct Chosen {
  A threshold = 0;
  int64_t cutoff = -1;
  bool listed = false;  // the candidates hold them all

  __device__ bool holds(A x, int64_t i) const {
    return x > threshold || (x == threshold && i <= cutoff);
  }
};

// Shared memory of a block.
template <typename A>
struct HeadScratch {
  double* sums;        // 33, for block_reduce
  A* maxima;           // 33, likewise
  A* values;           // kCandidates
  int32_t* indices;    // kCandidates
  A* best;             // kFewSelected, best first
  int32_t* counts;     // kHeadThreads
  A* threshold;        // 1
  int64_t* cutoff;     // 1
  uint64_t* prefix;    // 1
  int32_t* remaining;  // 2: of K; number of candidates

  __device__ static HeadScratch take(SharedMemory& memory) {
    HeadScratch s;
    s.sums = memory.array<double>(kWarp + 1);
    s.maxima = memory.array<A>(kWarp + 1);
    s.values = memory.array<A>(kCandidates);
    s.indices = memory.array<int32_t>(kCandidates);
    s.best = memory.array<A>(kFewSelected);
    s.counts = memory.array<int32_t>(kHeadThreads);
    s.threshold = memory.array<A>(1);
    s.cutoff = memory.array<int64_t>(1);
    s.prefix = memory.array<uint64_t>(1);
    s.remaining = memory.array<int32_t>(2);
    return s;
  }
  static int64_t bytes() {
    return shared_bytes<double>(kWarp + 1) + shared_bytes<A>(kWarp + 1) +
           shared_bytes<A>(kCandidates) + shared_bytes<int32_t>(kCandidates) +
           shared_bytes<A>(kFewSelected) + shared_bytes<int32_t>(kHeadThreads) +
           shared_bytes<A>(1) + shared_bytes<int64_t>(1) + shared_bytes<uint64_t>(1) +
           shared_bytes<int32_t>(2);
  }
};

// Bits in the order of the values, from the top of 64.
__device__ inline uint64_t ordered_bits(float x) {
  const uint32_t bits = float_to_bits(x + 0.0f);  // -0 is 0
  return static_cast<uint64_t>(bits >> 31 ? ~bits : bits | 0x80000000u) << 32;
}
__device__ inline uint64_t ordered_bits(double x) {
  union {
    double d;
    uint64_t u;
  } both{x + 0.0};
  return both.u >> 63 ? ~both.u : both.u | uint64_t{1} << 63;
}

// The K largest of a row's logits by one block, the lower index first where they are equal, as a
// threshold and the last index at which a value equal to it still counts.
// Few (K <= 128): the K-th largest of the threads' own maxima bounds the K-th largest of the row
// from below, so only threads whose maximum reaches it look at their elements again, and what they
// find (about K) is ranked by counting. Many, or a flood of equal values: a radix selection over
// the bits of the row, eight at a time. Thread t owns packs t, t + blockDim, ...
template <typename A>
class HeadSelect {
 public:
  __device__ HeadSelect(const HeadLogits<A>& logits, const HeadScratch<A>& scratch, int64_t k)
      : logits_(logits), s_(scratch), k_(static_cast<int32_t>(k)) {}

  // thread_max: the largest of the thread's own elements, -infinity where it has none.
  __device__ Chosen<A> find(A thread_max) {
    Chosen<A> chosen;
    if (k_ <= kFewSelected && find_few(thread_max)) {
      chosen.listed = true;
    } else {
      find_many();
    }
    chosen.threshold = *s_.threshold;
    chosen.cutoff = *s_.cutoff;
    __syncthreads();
    return chosen;
  }

  // body(value) for this thread's share of the chosen; which share depends on the values alone.
  template <typename Body>
  __device__ void each(const Chosen<A>& chosen, A thread_max, const Body& body) {
    if (chosen.listed) {
      if (static_cast<int>(threadIdx.x) < k_) body(s_.best[threadIdx.x]);
      return;
    }
    if (thread_max < chosen.threshold) return;
    each_own([&](A x, int64_t i) {
      if (chosen.holds(x, i)) body(x);
    });
  }

 private:
  template <typename Body>
  __device__ void each_own(const Body& body) const {
    for (int64_t pack = threadIdx.x; pack * kHeadPack < logits_.count; pack += blockDim.x) {
      A x[kHeadPack];
      const int count = logits_.load_pack(pack, x);
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) {
        if (i < count) body(x[i], pack * kHeadPack + i);
      }
    }
  }

  // The K-th largest of the threads' maxima, in *s_.threshold.
  __device__ void bound_threshold(A thread_max) {
    const int self = threadIdx.x;
    s_.values[self] = thread_max;
    if (self == 0) {
      *s_.threshold = -INFINITY;
      *s_.cutoff = -1;
      s_.remaining[1] = 0;
    }
    __syncthreads();
    int rank = 0;
    for (int other = 0; other < static_cast<int>(blockDim.x); ++other) {
      const A value = s_.values[other];
      rank += value > thread_max || (value == thread_max && other < self);
    }
    if (rank == k_ - 1) *s_.threshold = thread_max;
    __syncthreads();
  }

  // Leaves the K best in s_.best. False where too many values reach the bound.
  __device__ bool find_few(A thread_max) {
    bound_threshold(thread_max);
    const A bound = *s_.threshold;
    if (thread_max >= bound) {
      each_own([&](A x, int64_t i) {
        if (!(x >= bound)) return;
        const int32_t at = atomicAdd(&s_.remaining[1], 1);
        if (at >= kCandidates) return;
        s_.values[at] = x;
        s_.indices[at] = static_cast<int32_t>(i);
      });
    }
    __syncthreads();
    const int32_t count = s_.remaining[1];
    if (count > kCandidates || count < k_) return false;  // fewer: NaNs among the logits
    for (int32_t own = threadIdx.x; own < count; own += blockDim.x) {
      const A value = s_.values[own];
      const int32_t index = s_.indices[own], rank = rank_of(value, index, count);
      if (rank < k_) s_.best[rank] = value;
      if (rank == k_ - 1) *s_.threshold = value, *s_.cutoff = index;
    }
    __syncthreads();
    return true;
  }

  __device__ int32_t rank_of(A value, int32_t index, int32_t count) const {
    int32_t rank = 0;
    for (int32_t other = 0; other < count; ++other) {
      const A x = s_.values[other];
      rank += x > value || (x == value && s_.indices[other] < index);
    }
    return rank;
  }

  // The ordered bits of the K-th largest, digit by digit, then the place of the last equal value.
  __device__ void find_many() {
    constexpr int kDigits = 256;
    const int self = threadIdx.x;
    if (self == 0) *s_.prefix = 0, s_.remaining[0] = k_;
    for (int shift = 56; shift >= (sizeof(A) == 4 ? 32 : 0); shift -= 8) {
      for (int i = self; i < kDigits; i += blockDim.x) s_.counts[i] = 0;
      __syncthreads();
      const uint64_t prefix = *s_.prefix;
      const uint64_t known = shift == 56 ? 0 : ~uint64_t{0} << (shift + 8);
      each_own([&](A x, int64_t) {
        const uint64_t bits = ordered_bits(x);
        if ((bits & known) == prefix) {
          atomicAdd(&s_.counts[static_cast<int>(bits >> shift & 255)], 1);
        }
      });
      __syncthreads();
      if (self == 0) {
        int digit = kDigits - 1;
        while (digit > 0 && s_.counts[digit] < s_.remaining[0]) {
          s_.remaining[0] -= s_.counts[digit--];
        }
        *s_.prefix = prefix | static_cast<uint64_t>(digit) << shift;
      }
      __syncthreads();
    }
    find_cutoff();
  }

  // Threads count the values equal to the threshold in ranges of their own, in the row's order.
  __device__ void find_cutoff() {
    const uint64_t bits = *s_.prefix;
    const int self = threadIdx.x;
    const int64_t length = (logits_.count + blockDim.x - 1) / blockDim.x;
    const int64_t first = min(self * length, logits_.count);
    const int64_t last = min(first + length, logits_.count);
    int32_t equal = 0;
    for (int64_t i = first; i < last; ++i) equal += ordered_bits(logits_.at(i)) == bits;
    s_.counts[self] = equal;
    __syncthreads();
    int32_t left = s_.remaining[0];
    for (int other = 0; other < self; ++other) left -= s_.counts[other];
    if (left >= 1 && left <= equal) {
      int64_t i = first;
      for (; i < last; ++i) {
        if (ordered_bits(logits_.at(i)) == bits && --left == 0) break;
      }
      *s_.cutoff = i;
      *s_.threshold = logits_.at(i);
    }
    __syncthreads();
  }

  const HeadLogits<A>& logits_;
  const HeadScratch<A>& s_;
  int32_t k_;
};

// A thread's share of a row.
template <typename A>
struct HeadSums {
  A max = -INFINITY, teacher_shift = 0;
  WideSum<A> plain, student;  // temperatures 1 and T
  WideSum<A> teacher, gap, rest;
  Weighted<A> dense;  // temperature Te
};

// The results of the first pass for the second; the same in every thread.
struct HeadStatistics {
  double shift = 0, sum = 1, shift_teacher = 0;
  DivergenceSums pair = {1, 1, 0, 0};
  double log_sum_entropy = 0;
  double task = 0, consistency = 0, entropy = 0;
};

template <typename A>
class HeadRowPass {
 public:
  __device__ HeadRowPass(const HeadArgs<A>& args, const HeadScratch<A>& scratch)
      : args_(args), scratch_(scratch) {
    const int64_t row = blockIdx.x;
    const A cap = static_cast<A>(args.options.softcap);
    const A inverse = cap > A(0) ? A(1) / cap : A(0);
    z_ = {args.z + row * args.stride, args.vocabulary, cap, inverse};
    y_ = {args.y ? args.y + row * args.stride : nullptr, args.vocabulary, cap, inverse};
    target_ = args.targets ? args.targets[args.first + row] : -1;
    regularized_ = !args.regularized || args.regularized[args.first + row] != 0;
    if (target_ != BALORA_IGNORED_TARGET && args.targets &&
        (target_ < 0 || target_ >= args.vocabulary)) {
      if (threadIdx.x == 0) {
        report_fault(args.fault, kTargetOutOfRange, args.fault_row, target_, args.vocabulary,
                     args.first + row);
      }
      target_ = -1;
    }
    live_ = regularized_ && y_.data;
    consistent_ = live_ || (regularized_ && args.offsets);
    entropic_ = regularized_ && args.options.entropy_top_k >= 0;
    dense_ = args.options.entropy_top_k == 0 || args.options.entropy_top_k >= args.vocabulary;
    scale_ = static_cast<A>(1 / args.options.temperature);
    entropy_scale_ = static_cast<A>(1 / args.options.entropy_temperature);
  }

  __device__ void run() {
    HeadSums<A> sums;
    if (live_) find_shifts(sums);
    gather(sums);
    combine(sums);
    if (entropic_ && !dense_) select(sums.max);
    if (threadIdx.x == 0) {
      double* terms = args_.terms + BALORA_HEAD_TERMS * (args_.first + blockIdx.x);
      terms[BALORA_HEAD_TASK] = s_.task;
      terms[BALORA_HEAD_CONSISTENCY] = s_.consistency;
      terms[BALORA_HEAD_ENTROPY] = s_.entropy;
    }
    if (!args_.gradient) return;
    __syncthreads();  // every thread has read the target's logit
    write_gradient();
  }

 private:
  static constexpr int kFlush = 32;  // packs

  // Shifts of both rows' logits for their sums: the student's largest, and that of the teacher's
  // which kernels/shared/divergence.h wants.
  __device__ void find_shifts(HeadSums<A>& sums) {
    A max = -INFINITY, teacher_max = -INFINITY;
    for (int64_t pack = threadIdx.x; pack * kHeadPack < args_.vocabulary; pack += blockDim.x) {
      A x[kHeadPack], t[kHeadPack];
      const int count = z_.load_pack(pack, x);
      y_.load_pack(pack, t);
      max = Max{}(max, largest_of(x, count));
      teacher_max = Max{}(teacher_max, largest_of(t, count));
    }
    max = block_reduce(max, A(-INFINITY), scratch_.maxima, Max{});
    teacher_max = block_reduce(teacher_max, A(-INFINITY), scratch_.maxima, Max{});
    const int64_t step = centre_step(args_.vocabulary), samples = args_.vocabulary / step;
    A weight = 0, value = 0;
    for (int64_t i = threadIdx.x; i < samples; i += blockDim.x) {
      const A t = y_.at(i * step), q = exp_or_zero((t - teacher_max) * scale_);
      weight += q;
      value += q * ((t - z_.at(i * step)) - (teacher_max - max));
    }
    weight = block_reduce(weight, A(0), scratch_.maxima);
    value = block_reduce(value, A(0), scratch_.maxima);
    sums.max = max;
    sums.teacher_shift = teacher_max + centre_offset(weight, value, static_cast<A>(step), scale_);
  }

  __device__ void gather(HeadSums<A>& sums) {
    int since = 0;
    for (int64_t pack = threadIdx.x; pack * kHeadPack < args_.vocabulary; pack += blockDim.x) {
      A x[kHeadPack], t[kHeadPack] = {};
      const int count = z_.load_pack(pack, x);
      if (live_) y_.load_pack(pack, t);
      raise(sums, x, count);
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) {
        if (i < count) add(sums, x[i], t[i]);
      }
      if (++since == kFlush) {
        since = 0;
        flush(sums);
      }
    }
    flush(sums);
  }

  __device__ void add(HeadSums<A>& sums, A x, A t) const {
    if (target_ >= 0) sums.plain += exp_or_zero(x - sums.max);
    if (consistent_) {
      const A p = exp_or_zero((x - sums.max) * scale_);
      sums.student += p;
      if (live_) {
        const A w = ((t - x) - (sums.teacher_shift - sums.max)) * scale_;
        const A q = exp_or_zero((t - sums.teacher_shift) * scale_);
        sums.teacher += q;
        sums.gap += q * w;
        sums.rest += divergence_rest(q, p, w);
      }
    }
    if (entropic_ && dense_) {
      const A offset = x - sums.max, w = exp_or_zero(offset * entropy_scale_);
      sums.dense.weights += w;
      sums.dense.values += w * offset;
    }
  }

  __device__ static A largest_of(const A (&x)[kHeadPack], int count) {
    A largest = x[0];
    BALORA_UNROLL
    for (int i = 1; i < kHeadPack; ++i) largest = i < count && x[i] > largest ? x[i] : largest;
    return largest;
  }
  __device__ void raise(HeadSums<A>& sums, const A (&x)[kHeadPack], int count) const {
    const A largest = largest_of(x, count);
    if (!(largest > sums.max)) return;
    if (sums.max > -INFINITY) raise_by(sums, largest - sums.max);
    sums.max = largest;
  }
  // The maximum that the sums are beside grows.
  __device__ void raise_by(HeadSums<A>& sums, A step) const {
    sums.plain.scale_by(exp_or_zero(-step));
    sums.student.scale_by(exp_or_zero(-step * scale_));
    sums.dense.rescale(step, entropy_scale_);
  }
  __device__ static void flush(HeadSums<A>& sums) {
    sums.plain.flush(), sums.student.flush(), sums.dense.flush();
    sums.teacher.flush(), sums.gap.flush(), sums.rest.flush();
  }

  __device__ double total(double value) { return block_reduce(value, 0.0, scratch_.sums); }

  // Brings the threads' sums to one shift and makes the row's terms.
  __device__ void combine(HeadSums<A>& sums) {
    const A max = block_reduce(sums.max, A(-INFINITY), scratch_.maxima, Max{});
    s_.shift = static_cast<double>(max);
    if (sums.max > -INFINITY) raise_by(sums, max - sums.max);
    if (target_ >= 0) {
      s_.sum = total(sums.plain.whole);
      s_.task = s_.shift + log(s_.sum) - static_cast<double>(z_.at(target_));
    }
    if (consistent_) compare(sums);
    if (entropic_ && dense_) {
      const double weights = total(sums.dense.weights.whole),
                   values = total(sums.dense.values.whole);
      set_entropy(weights, values);
    }
  }

  __device__ void compare(const HeadSums<A>& sums) {
    const double temperature = args_.options.temperature;
    s_.pair.student = total(sums.student.whole);
    if (!live_) {
      const double lse = s_.shift / temperature + log(s_.pair.student);
      s_.consistency = temperature * (temperature * lse - args_.offsets[args_.first + blockIdx.x]);
      return;
    }
    s_.pair.teacher = total(sums.teacher.whole);
    s_.pair.gap = total(sums.gap.whole), s_.pair.rest = total(sums.rest.whole);
    s_.shift_teacher = static_cast<double>(sums.teacher_shift);
    s_.consistency = temperature * temperature * s_.pair.divergence();
  }

  __device__ void set_entropy(double weights, double values) {
    s_.log_sum_entropy = log(weights);
    s_.entropy = s_.log_sum_entropy - values / weights * static_cast<double>(entropy_scale_);
  }

  // The K largest logits and the entropy of their distribution.
  __device__ void select(A thread_max) {
    HeadSelect<A> finder(z_, scratch_, args_.options.entropy_top_k);
    chosen_ = finder.find(thread_max);
    const A max = static_cast<A>(s_.shift);
    double weights = 0, values = 0;
    finder.each(chosen_, thread_max, [&](A x) {
      const A offset = x - max, w = exp_or_zero(offset * entropy_scale_);
      weights += static_cast<double>(w);
      values += static_cast<double>(w * offset);
    });
    weights = total(weights);
    values = total(values);
    set_entropy(weights, values);
  }

  // The gradient's coefficients, rounded as on the CPU.
  struct Slopes {
    A shift, task, student, teacher, teacher_shift, log_ratio, diversity, log_sum, entropy,
        task_scale;
    double per_entropy_temperature;
  };
  __device__ Slopes slopes() const {
    const HeadOptions o = scaled_options(args_.options, args_.scales);
    Slopes g{};
    g.shift = static_cast<A>(s_.shift);
    g.task_scale = static_cast<A>(o.task_scale);
    if (target_ >= 0) g.task = static_cast<A>(o.task_scale / s_.sum);
    g.teacher_shift = static_cast<A>(s_.shift_teacher);
    if (consistent_) {
      const double scale = o.consistency_scale * o.temperature;
      g.student = static_cast<A>(scale / s_.pair.student);
      g.teacher = static_cast<A>(scale / s_.pair.teacher);
      g.log_ratio = static_cast<A>(s_.pair.log_ratio());
    }
    g.per_entropy_temperature = 1 / o.entropy_temperature;
    if (entropic_) g.diversity = static_cast<A>(o.diversity_scale / o.entropy_temperature);
    g.log_sum = static_cast<A>(s_.log_sum_entropy);
    g.entropy = static_cast<A>(s_.entropy);
    return g;
  }

  __device__ A gradient_at(const Slopes& g, int64_t i, A x, A t) const {
    A sum = 0;
    if (g.task != A(0)) sum = g.task * exp_or_zero(x - g.shift);
    if (i == target_) sum -= g.task_scale;
    if (g.student != A(0)) {
      const A p = g.student * exp_or_zero((x - g.shift) * scale_);
      sum += live_ ? less_teacher(g, p, x, t) : p;
    }
    if (g.diversity != A(0) && dense_) {
      const A log_pi = (x - g.shift) * entropy_scale_ - g.log_sum;
      sum += g.diversity * exp_or_zero(log_pi) * (log_pi + g.entropy);
    } else if (g.diversity != A(0) && chosen_.holds(x, i)) {
      sum += chosen_gradient(g, x);
    }
    const A capped = x * z_.inverse_cap;
    return sum * (A(1) - capped * capped);
  }

  // The teacher's part of the gradient taken off the student's p.
  __device__ A less_teacher(const Slopes& g, A p, A x, A t) const {
    const A q = g.teacher * exp_or_zero((t - g.teacher_shift) * scale_);
    const A w = ((t - x) - (g.teacher_shift - g.shift)) * scale_;
    return exp_difference(q, p, -(w + g.log_ratio));
  }

  // Where the chosen are nearly equal log pi + H cancels: it is formed in f64.
  __device__ A chosen_gradient(const Slopes& g, A x) const {
    const double log_pi = (static_cast<double>(x) - s_.shift) * g.per_entropy_temperature;
    const A pi = exp_or_zero(static_cast<A>(log_pi - s_.log_sum_entropy));
    return g.diversity * pi * static_cast<A>(log_pi + (s_.entropy - s_.log_sum_entropy));
  }

  __device__ void write_gradient() {
    const Slopes g = slopes();
    const int64_t row = blockIdx.x;
    A* dz = args_.z + row * args_.stride;
    bf16* rounded = args_.rounded ? args_.rounded + row * args_.stride : nullptr;
    for (int64_t pack = threadIdx.x; pack * kHeadPack < args_.vocabulary; pack += blockDim.x) {
      A x[kHeadPack], t[kHeadPack] = {};
      const int count = z_.load_pack(pack, x);
      if (live_) y_.load_pack(pack, t);
      Pack<A, kHeadPack> out;
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) {
        out.at[i] = i < count ? gradient_at(g, pack * kHeadPack + i, x[i], t[i]) : A(0);
      }
      // A row's stride is a multiple of the pack: the last one may run into its padding.
      if (!rounded) {
        *reinterpret_cast<Pack<A, kHeadPack>*>(dz + pack * kHeadPack) = out;
        continue;
      }
      Pack<bf16, kHeadPack> narrow;
      BALORA_UNROLL
      for (int i = 0; i < kHeadPack; ++i) narrow.at[i] = store<bf16>(static_cast<float>(out.at[i]));
      *reinterpret_cast<Pack<bf16, kHeadPack>*>(rounded + pack * kHeadPack) = narrow;
    }
  }

  const HeadArgs<A>& args_;
  HeadScratch<A> scratch_;
  HeadLogits<A> z_, y_;
  int64_t target_;
  bool regularized_, live_, consistent_, entropic_, dense_;  // live_: the teacher has logits
  A scale_, entropy_scale_;
  HeadStatistics s_;
  Chosen<A> chosen_;
};

template <typename A>
__global__ void __launch_bounds__(kHeadThreads, 2) head_rows(HeadArgs<A> args) {
  SharedMemory memory;
  const HeadScratch<A> scratch = HeadScratch<A>::take(memory);
  HeadRowPass<A> pass(args, scratch);
  pass.run();
}

}  // namespace

template <typename A>
void launch_head_rows(Context* ctx, const char* name, const HeadArgs<A>& args, int64_t rows) {
  const unsigned threads = head_row_threads(args.vocabulary, kFewSelected, kHeadThreads);
  launch(ctx, name, Grid{dim3(static_cast<unsigned>(rows)), dim3(threads), HeadScratch<A>::bytes()},
         head_rows<A>, args);
}
template void launch_head_rows(Context*, const char*, const HeadArgs<float>&, int64_t);
template void launch_head_rows(Context*, const char*, const HeadArgs<double>&, int64_t);

}  // namespace balora::cuda
