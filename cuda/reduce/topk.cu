// The K largest of each row in descending order with their columns; equal values by column, a NaN
// above every number (kernels/cpu/reduce/topk.cc). A block a row, on keys that order as the
// values do:
//   1. Each of up to 512 threads keeps the largest keys of two strided parts of the row; the K-th
//      largest of these P = 1024 is a lower bound of the row's K-th largest.
//   2. What lies above the bound, and the first K columns that equal it, are gathered in the order
//      of the columns: for values in no particular order some P ln(1 / (1 - K / P)) of them.
//   3. A bitonic sort of the gathered, by key and column; the first K are the answer.
// Where too many lie above the bound, or K > P / 2, the row's K-th key itself is found bit by bit
// (8 * size more reads of the row) and takes the bound's place; a short row is sorted whole. The
// row comes from memory once, 2. reads it from the L2 cache: N=2048, V=49152 in bf16 is 201 MB, 60
// us at 3.35 TB/s; the barriers of the bound (32 for bf16) and of the sort (55) add about as much.
#include "device/rows.cuh"
#include "device/scan.cuh"

namespace balora::cuda {
namespace {

constexpr int kMaxThreads = 512, kParts = 2;
constexpr int64_t kSortedWhole = 1024;

template <typename T>
using Key = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

// Ordered as the values are, equal where they are (-0 and 0, NaNs); 0 is below every value.
template <typename T>
__device__ inline Key<T> key_of(T value) {
  using K = Key<T>;
  constexpr int kBits = 8 * sizeof(T);
  constexpr K kSign = K(1) << (kBits - 1), kAll = kSign | (kSign - 1);
  if (load(value) != load(value)) return kAll;
  if (load(value) == Acc<T>(0)) return kSign;
  K bits;
  if constexpr (sizeof(T) == 2) {
    bits = value.bits;
  } else if constexpr (sizeof(T) == 4) {
    bits = float_to_bits(value);
  } else {
    union {
      double value;
      uint64_t bits;
    } both{value};
    bits = both.bits;
  }
  return bits & kSign ? ~bits & kAll : bits | kSign;
}

template <typename K>
struct Entry {
  K key;
  uint32_t back;  // ~column

  __device__ bool before(const Entry& other) const {
    return key > other.key || (key == other.key && back > other.back);
  }
};

enum BoundKind : int32_t { kNoBound, kFromParts, kExact };

struct TopTask {
  int64_t rows;
  int32_t size, k;
  int32_t slots;  // of the list: a power of two, the last k for what equals the bound
  int32_t bound;  // a BoundKind
};

// The largest key that at least k keys reach, 0 where there are fewer; count(key) returns how many
// reach it, the same in every thread.
template <int kBits, typename K, typename Count>
__device__ inline K kth_largest(int32_t k, const Count& count) {
  K found = 0;
  for (int bit = kBits - 1; bit >= 0; --bit) {
    const K candidate = found | K(1) << bit;
    if (count(candidate) >= k) found = candidate;
  }
  return found;
}

// One row in the hands of a block.
template <typename T>
struct TopRow {
  using K = Key<T>;
  static constexpr int W = kPackOf<T>, kBits = 8 * sizeof(T);

  Cut<T> cut;
  Row<const T> row;
  int32_t* scratch;  // 33 in shared memory

  // Calls body(key, column) for the packet's elements.
  template <typename Body>
  __device__ void each(int32_t packet, const Body& body) const {
    const int32_t first = cut.first(packet);
    const Packet<T> values = row.get(first, T{});
    BALORA_UNROLL
    for (int j = 0; j < W; ++j) {
      if (first + j >= 0 && first + j < cut.size) body(key_of<T>(values.at(j)), first + j);
    }
  }

  __device__ K bound(int32_t k) const {
    K best[kParts] = {};
    const auto threads = static_cast<int32_t>(blockDim.x);
    for (int32_t i = threadIdx.x; i < cut.packets(); i += kParts * threads) {
      BALORA_UNROLL
      for (int p = 0; p < kParts; ++p) {
        each(i + p * threads, [&](K key, int32_t) { best[p] = key > best[p] ? key : best[p]; });
      }
    }
    return kth_largest<kBits, K>(k, [&](K key) {
      int32_t reached = 0;
      BALORA_UNROLL
      for (int p = 0; p < kParts; ++p) reached += __syncthreads_count(best[p] >= key);
      return reached;
    });
  }

  __device__ K exact(int32_t k) const {
    return kth_largest<kBits, K>(k, [&](K key) {
      int32_t reached = 0;
      for (int32_t i = threadIdx.x; i < cut.packets(); i += static_cast<int32_t>(blockDim.x)) {
        each(i, [&](K other, int32_t) { reached += other >= key; });
      }
      return block_reduce(reached, 0, scratch);
    });
  }

  // Fills the list and returns how many lie above the bound; more than slots - k do not fit.
  __device__ int32_t gather(const TopTask& task, K bound, Entry<K>* list) const {
    constexpr int32_t kEqual = 1 << 16;  // two counts in one sum: a tile has at most 4096
    const int32_t room = task.slots - task.k;
    int32_t above = 0, equal = 0;
    for (int32_t s = threadIdx.x; s < task.slots; s += static_cast<int32_t>(blockDim.x))
      list[s] = {0, 0};
    __syncthreads();
    for (int32_t tile = 0; tile < cut.packets(); tile += static_cast<int32_t>(blockDim.x)) {
      int32_t mine = 0, total = 0;
      each(tile + threadIdx.x, [&](K key, int32_t) {
        mine += key > bound ? 1 : key == bound ? kEqual : 0;
      });
      if (!__syncthreads_or(mine)) continue;
      const int32_t before = block_scan(mine, scratch, total);
      int32_t next_above = above + before % kEqual, next_equal = equal + before / kEqual;
      each(tile + threadIdx.x, [&](K key, int32_t column) {
        const Entry<K> entry{key, ~static_cast<uint32_t>(column)};
        if (key > bound && next_above++ < room) list[next_above - 1] = entry;
        if (key == bound && next_equal++ < task.k) list[room + next_equal - 1] = entry;
      });
      above += total % kEqual;
      equal += total / kEqual;
    }
    __syncthreads();
    return above;
  }
};

// Bitonic, the first in front; `slots` is a power of two.
template <typename K>
__device__ inline void sort(Entry<K>* list, int32_t slots) {
  for (int32_t run = 2; run <= slots; run *= 2) {
    for (int32_t step = run / 2; step > 0; step /= 2) {
      for (int32_t i = threadIdx.x; i < slots / 2; i += static_cast<int32_t>(blockDim.x)) {
        const int32_t low = i / step * 2 * step + i % step, high = low + step;
        const bool descending = (low & run) == 0;
        const Entry<K> a = list[low], b = list[high];
        if (b.before(a) == descending) {
          list[low] = b;
          list[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// `memory` is null where the list fits into shared memory.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    top_of_rows(const T* x, T* values, int32_t* columns, TopTask task, Entry<Key<T>>* memory) {
  BALORA_SHARED(int32_t, scratch, kWarp + 1);
  SharedMemory shared;
  Entry<Key<T>>* list = memory ? memory + static_cast<int64_t>(blockIdx.x) * task.slots
                               : shared.array<Entry<Key<T>>>(task.slots);
  for (int64_t n = blockIdx.x; n < task.rows; n += gridDim.x) {
    const T* at = x + n * task.size;
    const Cut<T> cut = Cut<T>::aligned(at, task.size);
    const TopRow<T> row{cut, cut.row(at), scratch};
    bool found = false;
    if (task.bound != kExact) {
      const Key<T> bound = task.bound == kFromParts ? row.bound(task.k) : 0;
      found = row.gather(task, bound, list) <= task.slots - task.k;
    }
    if (!found) row.gather(task, row.exact(task.k), list);
    sort(list, task.slots);
    for (int32_t j = threadIdx.x; j < task.k; j += static_cast<int32_t>(blockDim.x)) {
      const auto column = static_cast<int32_t>(~list[j].back);
      values[n * task.k + j] = at[column];
      columns[n * task.k + j] = column;
    }
    __syncthreads();
  }
}

// How a row of `size` elements is taken by `threads` threads: what a random row leaves above the
// bound fits with room to spare, and what lies above an exact bound always.
TopTask top_task(int64_t rows, int64_t size, int64_t k, int64_t threads) {
  const int64_t parts = kParts * threads;
  const BoundKind bound = size <= kSortedWhole ? kNoBound : k <= parts / 2 ? kFromParts : kExact;
  const int64_t least = bound == kNoBound     ? size + k
                        : bound == kFromParts ? std::max(parts, 4 * k)
                                              : 2 * k;
  int64_t slots = 64;
  while (slots < least) slots *= 2;
  if (slots > 1 << 30) {
    throw std::runtime_error("topk: k=" + std::to_string(k) + " is too large");
  }
  return {rows, static_cast<int32_t>(size), static_cast<int32_t>(k), static_cast<int32_t>(slots),
          bound};
}

}  // namespace

int32_t topk_kernel(Context* ctx, const balora_topk& o) {
  constexpr int64_t kSharedList = 48 << 10;
  const int64_t rows = o.x->shape[0], k = o.values->shape[1];
  if (rows == 0 || k == 0) return 0;
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const int64_t packets = ceil_div(o.x->shape[1], kPackOf<T>);
    const int64_t threads =
        std::clamp<int64_t>(ceil_div(packets, kParts * kWarp) * kWarp, 2 * kWarp, kMaxThreads);
    plan_rows<T>("topk", rows, o.x->shape[1], 1);  // refuses a row that is too long
    const TopTask task = top_task(rows, o.x->shape[1], k, threads);
    const int64_t bytes = shared_bytes<Entry<Key<T>>>(task.slots);
    const bool in_memory = bytes > kSharedList;
    const int64_t blocks =
        std::min<int64_t>(rows, in_memory ? 2 * state_of(ctx).multiprocessors : kMaxBlocks);
    auto* memory = in_memory ? workspace<Entry<Key<T>>>(ctx, blocks * task.slots) : nullptr;
    const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                    in_memory ? 0 : bytes};
    launch(ctx, "topk", grid, top_of_rows<T>, data_of<T>(o.x), data_of<T>(o.values),
           data_of<int32_t>(o.columns), task, memory);
  });
  return 0;
}

}  // namespace balora::cuda
