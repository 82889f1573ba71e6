// Attention of a few rows to cached keys and values. A block of 128 threads has one row and head
// and walks its keys in tiles of 128 from a multiple of 128 on, with an online softmax: first a
// thread a key (keys lie by channel, so neighbours read neighbours), then a thread a channel. The
// order of every sum depends on the row's own sequence alone.
//
// 4 D T bytes of bf16 a kv head; heads of a group find them in L2. Not yet split over T: one long
// sequence with few heads leaves multiprocessors idle. Not measured on a GPU.
#include <cmath>

#include "attention/attention.cuh"
#include "attention/kv_cache.cuh"

namespace balora::cuda {
namespace {

using attention::exponential;
using attention::hyperbolic_tangent;

constexpr int kThreads = 128;

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
struct Seen {
  int32_t first, last, position;
};

template <typename T>
__device__ Seen keys_of(const kv_cache::Cache& cache, const Attention<T>& o, int32_t b, int64_t n) {
  if (!cache.check_rows(b, o.rows, o.causal != 0)) return {0, 0, 0};
  const int32_t length = cache.lengths[b];
  const auto position = static_cast<int32_t>(length - (cache.cu_rows[b + 1] - n));
  const int32_t last = o.causal ? position + 1 : length;
  // Before the walk, which would take long over billions of keys that there cannot be, and whose
  // last tile must end below 2^31.
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

// Nothing spills with 4 blocks a multiprocessor; left to itself, ptxas takes too few registers.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    attend(const __grid_constant__ kv_cache::Cache cache, Attention<T> o) {
  using A = Acc<T>;
  BALORA_SHARED(A, weights, kThreads);
  BALORA_SHARED(A, scratch, kWarp + 1);
  SharedMemory shared;
  A* const query = shared.array<A>(o.size);
  A* const sums = shared.array<A>(o.size);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t n = blockIdx.x / o.heads, head = blockIdx.x % o.heads;
  const int64_t kv_head = head / (o.heads / cache.heads);
  const int32_t b = cache.sequence_of(n);
  const Seen seen = keys_of(cache, o, b, n);
  for (int64_t d = thread; d < o.size; d += kThreads) {
    query[d] = load(o.q[n * o.q_stride + head * o.size + d]);
    sums[d] = A(0);
  }
  __syncthreads();
  A highest = -INFINITY, total = A(0);
  for (int32_t tile = seen.first / kThreads * kThreads; tile < seen.last; tile += kThreads) {
    const int32_t j = tile + thread;
    const bool inside = j >= seen.first && j < seen.last;
    const T* keys = inside ? cache.block_of<const T>(b, j) : nullptr;
    A score = -INFINITY;
    if (keys) {
      keys += kv_head * cache.head_elements() + j % kv_cache::kBlock;
      A sum = A(0);
      for (int64_t d = 0; d < o.size; ++d) sum += query[d] * load(keys[d * kv_cache::kBlock]);
      score = sum * o.scale;
      if (o.softcap != A(0)) score = o.softcap * hyperbolic_tangent(score / o.softcap);
      if (o.bias) score += load(o.bias[(seen.position - j) * o.heads + head]);
    }
    const A top = block_reduce(score, static_cast<A>(-INFINITY), scratch, Max());
    const A higher = top > highest || top != top ? top : highest;
    const A weight = keys ? exponential(score - higher) : A(0);
    const A fade = total == A(0) ? A(0) : exponential(highest - higher);
    total = total * fade + block_reduce(weight, A(0), scratch);
    highest = higher;
    weights[thread] = weight;
    __syncthreads();
    const int32_t begin = max(seen.first, tile), end = min(seen.last, tile + kThreads);
    for (int64_t d = thread; d < o.size; d += kThreads) {
      A sum = sums[d] * fade;
      const T* values = nullptr;
      for (int32_t key = begin; key < end; ++key) {
        if (!values || key % kv_cache::kBlock == 0) {
          const T* const block = cache.block_of<const T>(b, key);
          if (!block) break;
          values = block + kv_head * cache.head_elements() + cache.values_at() + d;
        }
        sum += weights[key - tile] * load(values[key % kv_cache::kBlock * cache.padded]);
      }
      sums[d] = sum;
    }
    __syncthreads();
  }
  T* const out = o.out + (n * o.heads + head) * o.size;
  for (int64_t d = thread; d < o.size; d += kThreads) {
    out[d] = store<T>(total == A(0) ? A(0) : sums[d] / total);
  }
}

}  // namespace

int32_t cached_attention_kernel(Context* ctx, const balora_cached_attention& o) {
  const int64_t rows = o.q->shape[0], heads = o.q->shape[1], size = o.q->shape[2];
  if (rows == 0) return 0;
  const kv_cache::Cache cache = kv_cache::cache_of(ctx, "cached_attention", *o.cache, o.cu_rows);
  dispatch_float(o.q->dtype, [&]<typename T>() {
    const Attention<T> attention{data_of<const T>(o.q),
                                 o.q->stride[0],
                                 rows,
                                 heads,
                                 size,
                                 data_of<const T>(o.bias),
                                 o.bias ? o.bias->shape[0] : 0,
                                 data_of<T>(o.out),
                                 static_cast<Acc<T>>(o.scale),
                                 static_cast<Acc<T>>(o.softcap),
                                 o.window,
                                 o.causal};
    launch(
        ctx, "cached_attention",
        {dim3(static_cast<unsigned>(rows * heads)), dim3(kThreads), 2 * shared_bytes<Acc<T>>(size)},
        attend<T>, cache, attention);
  });
  return 0;
}

}  // namespace balora::cuda
