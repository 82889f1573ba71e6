// The K largest of a row's logits by one block, the lower index first where they are equal, as a
// threshold and the last index at which a value equal to it still counts.
// Few (K <= 128): the K-th largest of the threads' own maxima bounds the K-th largest of the row
// from below, so only threads whose maximum reaches it look at their elements again, and what they
// find (about K) is ranked by counting. Many, or a flood of equal values: a radix selection over
// the bits of the row, eight at a time.
#pragma once
#include "head/head_sums.cuh"

namespace balora::cuda {

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

// Logits has at(i), load_pack(pack, x) and count; thread t owns packs t, t + blockDim, ...
template <typename A, typename Logits>
class HeadSelect {
 public:
  __device__ HeadSelect(const Logits& logits, const HeadScratch<A>& scratch, int64_t k)
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

  const Logits& logits_;
  const HeadScratch<A>& s_;
  int32_t k_;
};

}  // namespace balora::cuda
