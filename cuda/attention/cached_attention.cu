// Attention of a few rows to cached keys and values. The keys of a row are split at multiples of
// kPart. A block of 128 threads goes through a part in tiles of 128 keys with an online softmax:
// first with a thread for each key (keys are stored by channel, so neighbours read neighbours),
// then with a thread for each channel.
//
// The parts of a row and head are merged in their order: by one block that computes all of them or,
// where there are too few rows to fill the device, by a second kernel after a block for each part.
// Both ways give the same bits, so the choice may depend on the batch: the order of every sum
// depends on the row's own sequence alone.
//
// 4 D T bytes of bf16 a kv head; heads of a group find them in L2. Blocks of parts write and read
// 4 (D + 2) bytes more for each 256 keys. Not measured on a GPU.
#include <cmath>

#include "attention/attention.cuh"
#include "attention/kv_cache.cuh"
#include "elementwise/device_math.cuh"
#include "kernels/shared/activations.h"

namespace balora::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int32_t kPart = 2 * kThreads;    // keys, of which a part has no more
constexpr int64_t kMaxPartBlocks = 65535;  // of a grid's second dimension

template <typename T>
struct Attention {
  const T* q;
  int64_t q_stride, rows, heads, size;
  const T* bias;
  int64_t distances;
  T* out;
  Acc<T> scale, softcap;
  int64_t window;
  int32_t causal;
};

// Keys [first, last) that a row sees; none after a fault.
struct KeyRange {
  int32_t first, last, position;
};

template <typename T>
__device__ KeyRange range_of(const kv_cache::Cache& cache, const Attention<T>& o, int32_t b,
                             int64_t n) {
  if (!cache.check_rows(b, o.rows, o.causal != 0)) return {0, 0, 0};
  const int32_t length = cache.lengths[b];
  const auto position = static_cast<int32_t>(length - (cache.cu_rows[b + 1] - n));
  const int32_t last = o.causal ? position + 1 : length;
  // Checked before the loop over the keys, which would take long for billions of keys that there
  // cannot be, and whose last tile must end below 2^31.
  if (length > (int64_t{cache.first_block(b)} + cache.width) * kv_cache::kBlock ||
      length > INT_MAX - kThreads) {
    report_fault(cache.fault, kCacheBlocks, cache.row, fault_pair(b, length), cache.width);
    return {0, 0, 0};
  }
  const int64_t first = o.window > 0 && last > o.window ? last - o.window : 0;
  if (o.bias && length > o.distances) {
    report_fault(cache.fault, kCacheBias, cache.row, fault_pair(b, length), o.distances);
    return {0, 0, 0};
  }
  if (first < last && first / kv_cache::kBlock < cache.first_block(b)) {
    report_fault(cache.fault, kCacheWindow, cache.row, fault_pair(b, static_cast<int32_t>(first)),
                 0);
    return {0, 0, 0};
  }
  return {static_cast<int32_t>(first), last, position};
}

// The softmax over some of the keys: the highest score, and the sum of the weights
// exp(score - highest), 0 where there is no key. Beside it stand the sums (D) of the values with
// these weights.
template <typename A>
struct PartialSoftmax {
  A highest, total;
};

// The factors by which two partial sums are multiplied before they are added.
template <typename A>
struct Rescale {
  A first, second;
};
template <typename A>
__device__ Rescale<A> merge(PartialSoftmax<A>& all, const PartialSoftmax<A>& part) {
  if (part.total == A(0)) return {A(1), A(0)};
  if (all.total == A(0)) {
    all = part;
    return {A(0), A(1)};
  }
  const A higher = Max()(part.highest, all.highest);
  const Rescale<A> rescale = {std::exp(all.highest - higher), std::exp(part.highest - higher)};
  all = {higher, all.total * rescale.first + part.total * rescale.second};
  return rescale;
}
// A sum whose factor is 0 is not read.
template <typename A>
__device__ A merged(const Rescale<A>& rescale, const A& first, const A& second) {
  if (rescale.second == A(0)) return first;
  if (rescale.first == A(0)) return second;
  return first * rescale.first + second * rescale.second;
}

// A block's shared memory: kThreads weights, memory for reductions, and three arrays of D.
template <typename A>
struct Scratch {
  A *weights, *reduced, *query, *sums, *merged;
};
template <typename A>
__device__ Scratch<A> scratch_of(int64_t size) {
  BALORA_SHARED(A, weights, kThreads);
  BALORA_SHARED(A, reduced, kWarp + 1);
  SharedMemory shared;
  A* const query = shared.array<A>(size);
  A* const sums = shared.array<A>(size);
  return {weights, reduced, query, sums, shared.array<A>(size)};
}

// Attention of a row and head to the keys of one part; the sums are in scratch.sums.
template <typename T>
__device__ PartialSoftmax<Acc<T>> attend_to_part(const kv_cache::Cache& cache,
                                                 const Attention<T>& o, int32_t b, int64_t head,
                                                 const KeyRange& range, Scratch<Acc<T>> scratch) {
  using A = Acc<T>;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t kv_head = head / (o.heads / cache.heads);
  for (int64_t d = thread; d < o.size; d += kThreads) scratch.sums[d] = A(0);
  A highest = -INFINITY, total = A(0);
  for (int32_t tile = range.first / kThreads * kThreads; tile < range.last; tile += kThreads) {
    const int32_t j = tile + thread;
    const bool inside = j >= range.first && j < range.last;
    const T* keys = inside ? cache.block_of<const T>(b, j) : nullptr;
    A score = -INFINITY;
    if (keys) {
      keys += kv_head * cache.head_elements() + j % kv_cache::kBlock;
      A sum = A(0);
      for (int64_t d = 0; d < o.size; ++d)
        sum += scratch.query[d] * load(keys[d * kv_cache::kBlock]);
      score = sum * o.scale;
      if (o.softcap != A(0)) score = soft_capped<DeviceMath>(score, o.softcap);
      if (o.bias) score += load(o.bias[(range.position - j) * o.heads + head]);
    }
    const A top = block_reduce(score, static_cast<A>(-INFINITY), scratch.reduced, Max());
    const A higher = top > highest || top != top ? top : highest;
    const A weight = keys ? std::exp(score - higher) : A(0);
    const A rescale = total == A(0) ? A(0) : std::exp(highest - higher);
    total = total * rescale + block_reduce(weight, A(0), scratch.reduced);
    highest = higher;
    scratch.weights[thread] = weight;
    __syncthreads();
    const int32_t begin = max(range.first, tile), end = min(range.last, tile + kThreads);
    for (int64_t d = thread; d < o.size; d += kThreads) {
      A sum = scratch.sums[d] * rescale;
      const T* values = nullptr;
      for (int32_t key = begin; key < end; ++key) {
        if (!values || key % kv_cache::kBlock == 0) {
          const T* const block = cache.block_of<const T>(b, key);
          if (!block) break;
          values = block + kv_head * cache.head_elements() + cache.values_at() + d;
        }
        sum += scratch.weights[key - tile] * load(values[key % kv_cache::kBlock * cache.padded]);
      }
      scratch.sums[d] = sum;
    }
    __syncthreads();
  }
  return {highest, total};
}

// Part `index` of the keys that a row sees, counted from its first one.
__device__ KeyRange part_of(const KeyRange& range, int32_t index) {
  const int32_t begin = (range.first / kPart + index) * kPart;
  return {max(range.first, begin), min(range.last, begin + kPart), range.position};
}
__device__ int32_t parts_of(const KeyRange& range) {
  return range.first < range.last ? (range.last - 1) / kPart - range.first / kPart + 1 : 0;
}

template <typename T>
__device__ void load_query(const Attention<T>& o, int64_t n, int64_t head, Acc<T>* query) {
  for (int64_t d = threadIdx.x; d < o.size; d += kThreads) {
    query[d] = load(o.q[n * o.q_stride + head * o.size + d]);
  }
  __syncthreads();
}

// A block a row and head. Nothing spills with 4 blocks a multiprocessor; left to itself, ptxas
// takes too few registers.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    attend(const __grid_constant__ kv_cache::Cache cache, Attention<T> o) {
  using A = Acc<T>;
  const Scratch<A> scratch = scratch_of<A>(o.size);
  const int64_t n = blockIdx.x / o.heads, head = blockIdx.x % o.heads;
  const int32_t b = cache.sequence_of(n);
  const KeyRange range = range_of(cache, o, b, n);
  load_query(o, n, head, scratch.query);
  PartialSoftmax<A> all = {-INFINITY, A(0)};
  for (int32_t part = 0; part < parts_of(range); ++part) {
    const PartialSoftmax<A> one = attend_to_part(cache, o, b, head, part_of(range, part), scratch);
    const Rescale<A> rescale = merge(all, one);
    for (int64_t d = threadIdx.x; d < o.size; d += kThreads) {
      scratch.merged[d] = merged(rescale, scratch.merged[d], scratch.sums[d]);
    }
  }
  T* const out = o.out + (n * o.heads + head) * o.size;
  for (int64_t d = threadIdx.x; d < o.size; d += kThreads) {
    out[d] = store<T>(all.total == A(0) ? A(0) : scratch.merged[d] / all.total);
  }
}

// The results of a part in memory, (rows, heads, parts, kSums + D): the softmax and its sums.
enum : int64_t { kHighest, kTotal, kSums };

// A block a part.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    attend_part(const __grid_constant__ kv_cache::Cache cache, Attention<T> o, Acc<T>* partials) {
  using A = Acc<T>;
  const Scratch<A> scratch = scratch_of<A>(o.size);
  const int64_t n = blockIdx.x / o.heads, head = blockIdx.x % o.heads;
  const int32_t b = cache.sequence_of(n), part = static_cast<int32_t>(blockIdx.y);
  const KeyRange range = range_of(cache, o, b, n);
  if (part >= parts_of(range)) return;  // all threads of the block
  load_query(o, n, head, scratch.query);
  const PartialSoftmax<A> own = attend_to_part(cache, o, b, head, part_of(range, part), scratch);
  A* const to = partials + (int64_t{blockIdx.x} * gridDim.y + part) * (kSums + o.size);
  if (threadIdx.x == 0) to[kHighest] = own.highest, to[kTotal] = own.total;
  for (int64_t d = threadIdx.x; d < o.size; d += kThreads) to[kSums + d] = scratch.sums[d];
}

template <typename T>
__global__ void merge_parts(const __grid_constant__ kv_cache::Cache cache, Attention<T> o,
                            const Acc<T>* partials, int32_t parts) {
  using A = Acc<T>;
  const int64_t n = blockIdx.x / o.heads;
  const KeyRange range = range_of(cache, o, cache.sequence_of(n), n);
  const A* const own = partials + int64_t{blockIdx.x} * parts * (kSums + o.size);
  T* const out = o.out + int64_t{blockIdx.x} * o.size;
  for (int64_t d = threadIdx.x; d < o.size; d += kThreads) {
    PartialSoftmax<A> all = {-INFINITY, A(0)};
    A sum = A(0);
    for (int32_t part = 0; part < parts_of(range); ++part) {
      const A* const one = own + part * (kSums + o.size);
      const Rescale<A> rescale = merge(all, {one[kHighest], one[kTotal]});
      sum = merged(rescale, sum, one[kSums + d]);
    }
    out[d] = store<T>(all.total == A(0) ? A(0) : sum / all.total);
  }
}

constexpr int64_t kPartialBytes = int64_t{32} << 20;  // of parts, at most

// Parts that get blocks of their own: where a row may have several, and rows and heads alone would
// leave multiprocessors idle; else 1. Both ways give the same bits.
template <typename T>
int64_t blocks_of_parts(Context* ctx, const kv_cache::Cache& cache, const Attention<T>& o) {
  // A list that does not begin at a part's first key may reach into one more.
  const int64_t keys = int64_t{cache.width} * kv_cache::kBlock;
  const int64_t parts = ceil_div(keys, kPart) + (cache.first_blocks ? 1 : 0);
  const int64_t blocks = o.rows * o.heads;
  const int64_t bytes = blocks * parts * (kSums + o.size) * static_cast<int64_t>(sizeof(Acc<T>));
  const bool fills = blocks >= 4 * int64_t{state_of(ctx).multiprocessors};
  return fills || bytes > kPartialBytes || parts > kMaxPartBlocks ? 1 : parts;
}

}  // namespace

int32_t cached_attention_kernel(Context* ctx, const balora_cached_attention& o) {
  if (o.sinks) throw UnsupportedError("cached_attention: sinks are not computed on CUDA devices");
  const int64_t rows = o.q->shape[0], heads = o.q->shape[1], size = o.q->shape[2];
  if (rows == 0) return 0;
  const kv_cache::Cache cache = kv_cache::cache_of(ctx, "cached_attention", *o.cache, o.cu_rows);
  dispatch_float(o.q->dtype, [&]<typename T>() {
    const Attention<T> attention{.q = data_of<const T>(o.q),
                                 .q_stride = o.q->stride[0],
                                 .rows = rows,
                                 .heads = heads,
                                 .size = size,
                                 .bias = data_of<const T>(o.bias),
                                 .distances = o.bias ? o.bias->shape[0] : 0,
                                 .out = data_of<T>(o.out),
                                 .scale = static_cast<Acc<T>>(o.scale),
                                 .softcap = static_cast<Acc<T>>(o.softcap),
                                 .window = o.window,
                                 .causal = o.causal};
    const dim3 blocks(static_cast<unsigned>(rows * heads)), threads(kThreads);
    const int64_t parts = blocks_of_parts(ctx, cache, attention);
    const int64_t bytes = 3 * shared_bytes<Acc<T>>(size);
    if (parts == 1) {
      launch(ctx, "cached_attention", {blocks, threads, bytes}, attend<T>, cache, attention);
      return;
    }
    auto* const partials = workspace<Acc<T>>(ctx, rows * heads * parts * (kSums + size));
    launch(ctx, "cached_attention", {dim3(blocks.x, static_cast<unsigned>(parts)), threads, bytes},
           attend_part<T>, cache, attention, partials);
    launch(ctx, "cached_attention", {blocks, threads}, merge_parts<T>, cache, attention, partials,
           narrowed(parts, "a number of parts of"));
  });
  return 0;
}

}  // namespace balora::cuda
