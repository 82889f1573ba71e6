// Rows of a contiguous (N,C) as the kernels over rows see them: in packets of 16 bytes, a group of
// threads a row (a warp where the row is short, a block where it is long). A thread keeps its
// first packets in registers, so memory is read once; what does not fit there is read again, from
// the L2 cache. Packets that are not aligned or not full are moved element by element, so one
// kernel serves every size.
#pragma once
#include "runtime/common.cuh"

namespace balora::cuda {

constexpr int kRowThreads = 512;  // the largest block

// 16 bytes of neighbours, kept in four registers whatever the type.
template <typename T>
struct alignas(16) Packet {
  static constexpr int W = kPackOf<T>;
  uint32_t word[4];

  __device__ Acc<T> operator[](int j) const { return load(at(j)); }
  __device__ T at(int j) const {
    if constexpr (sizeof(T) == 2) {
      return T{static_cast<uint16_t>(word[j / 2] >> 16 * (j % 2))};
    } else if constexpr (sizeof(T) == 4) {
      return bits_to_float(word[j]);
    } else {
      return Both{{word[2 * j], word[2 * j + 1]}}.value;
    }
  }
  // In the order of j, which must begin with 0.
  __device__ void put(int j, T value) {
    if constexpr (sizeof(T) == 2) {
      const auto bits = static_cast<uint32_t>(value.bits);
      word[j / 2] = j % 2 == 0 ? bits : word[j / 2] | bits << 16;
    } else if constexpr (sizeof(T) == 4) {
      word[j] = float_to_bits(value);
    } else {
      Both both{};
      both.value = value;
      word[2 * j] = both.words[0];
      word[2 * j + 1] = both.words[1];
    }
  }
  __device__ static Packet filled(T value) {
    Packet out;
    BALORA_UNROLL
    for (int j = 0; j < W; ++j) out.put(j, value);
    return out;
  }

 private:
  union Both {
    uint32_t words[2];
    double value;
  };
};

// A row of `size` elements, moved in packets whose first element is given; elements outside the row
// read as `missing` and are not written. `vector` says that the packets are aligned.
template <typename T>
struct Row {
  using Element = std::remove_const_t<T>;
  static constexpr int W = kPackOf<Element>;

  T* data;
  int32_t size;
  bool vector;

  __device__ Packet<Element> get(int32_t first, Element missing) const {
    if (vector && first >= 0 && first <= size - W) {
      return *reinterpret_cast<const Packet<Element>*>(data + first);
    }
    Packet<Element> out;
    BALORA_UNROLL
    for (int j = 0; j < W; ++j) {
      const bool inside = first + j >= 0 && first + j < size;
      out.put(j, inside ? data[first + j] : missing);
    }
    return out;
  }
  __device__ void put(int32_t first, const Packet<Element>& packet) const {
    if (vector && first >= 0 && first <= size - W) {
      *reinterpret_cast<Packet<Element>*>(data + first) = packet;
      return;
    }
    BALORA_UNROLL
    for (int j = 0; j < W; ++j) {
      if (first + j >= 0 && first + j < size) data[first + j] = packet.at(j);
    }
  }
};

// How rows are cut: packet i begins at element i * W - skew. Without skew thread t owns the same
// columns in every row; with the skew of a row's address its packets are aligned whatever its size.
template <typename T>
struct Cut {
  static constexpr int W = kPackOf<T>;

  int32_t size, skew;

  __device__ static Cut columns(int32_t size) { return {size, 0}; }
  __device__ static Cut aligned(const T* row, int32_t size) {
    const auto past = reinterpret_cast<uintptr_t>(row) % 16;
    return {size, static_cast<int32_t>(past / sizeof(T))};
  }
  __device__ int32_t packets() const { return (size + skew + W - 1) / W; }
  __device__ int32_t first(int32_t packet) const { return packet * W - skew; }
  template <typename U>
  __device__ Row<U> row(U* data) const {
    return {data, size, (reinterpret_cast<uintptr_t>(data) - skew * sizeof(T)) % 16 == 0};
  }
};

// ---- Groups of threads --------------------------------------------------------------------------

// Rows shared among groups; warp_rows: a group is a warp, else a block.
struct RowTask {
  int64_t rows, groups;
  int32_t size, warp_rows;
};

struct Group {
  int64_t index;  // its first row; the next is task.groups on. Past every row for a group too many.
  int32_t lane, threads;
};
__device__ inline Group group_of(const RowTask& task) {
  if (!task.warp_rows) {
    return {blockIdx.x, static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockDim.x)};
  }
  const int64_t index = thread_index() / kWarp;
  return {index < task.groups ? index : task.rows + index,
          static_cast<int32_t>(threadIdx.x % kWarp), kWarp};
}

// Like block_reduce, over the group's threads.
template <typename A, typename Op = Sum>
__device__ inline A group_reduce(const RowTask& task, A value, A identity, A* scratch, Op op = {}) {
  return task.warp_rows ? warp_reduce(value, op) : block_reduce(value, identity, scratch, op);
}

// The value of the group's first lane for all; scratch as above.
template <typename A>
__device__ inline A group_broadcast(const RowTask& task, A value, A* scratch) {
  if (task.warp_rows) return __shfl_sync(kAllLanes, value, 0);
  if (threadIdx.x == 0) scratch[0] = value;
  __syncthreads();
  const A first = scratch[0];
  __syncthreads();  // the next use of scratch waits for every reader
  return first;
}

struct RowPlan {
  RowTask task;
  Grid grid;
};
// Groups for rows of which a thread holds `held` packets of T; at most `groups` of them, each of
// which then takes several rows.
template <typename T>
RowPlan plan_rows(const char* name, int64_t rows, int64_t size, int held,
                  int64_t groups = kMaxBlocks) {
  constexpr int kWarpsABlock = 4;
  if (size > INT32_MAX - kRowThreads * kPackOf<T> * 16) {  // room for a thread's next packets
    throw std::runtime_error(std::string(name) + ": a row of " + std::to_string(size) +
                             " elements is too long");
  }
  const int64_t packets = ceil_div(size, kPackOf<T>);
  const bool warp_rows = packets <= int64_t{kWarp} * held;
  groups = std::clamp<int64_t>(rows, 0, groups);
  const int64_t wanted = ceil_div(ceil_div(packets, held), kWarp) * kWarp;
  const int64_t blocks = warp_rows ? ceil_div(groups, kWarpsABlock) : groups;
  const int64_t threads = warp_rows ? kWarpsABlock * kWarp : std::min<int64_t>(wanted, kRowThreads);
  return {{rows, groups, static_cast<int32_t>(size), warp_rows},
          {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads))}};
}

// ---- Sums of columns ----------------------------------------------------------------------------

constexpr int kColumnLanes = 8;

// A block sums 32 columns; warp w adds rows w, w + 8, ..., and the eight sums are added in order.
template <typename T>
__global__ void add_columns(const T* x, Acc<T>* y, int64_t rows, int64_t size) {
  BALORA_SHARED(Acc<T>, sums, kColumnLanes * kWarp);
  const int column = threadIdx.x % kWarp, part = threadIdx.x / kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + column;
  Acc<T> sum = 0;
  if (c < size) {
    for (int64_t r = part; r < rows; r += kColumnLanes) sum += load(x[r * size + c]);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (part > 0 || c >= size) return;
  for (int p = 1; p < kColumnLanes; ++p) sum += sums[p * kWarp + column];
  y[c] = sum;
}

// y (C) = sum over the rows of x (N,C), every column in the same order; x may be partial sums of
// groups of rows.
template <typename T>
void sum_columns(Context* ctx, const char* name, const T* x, Acc<T>* y, int64_t rows,
                 int64_t size) {
  if (size == 0) return;
  const Grid grid{dim3(static_cast<unsigned>(ceil_div(size, kWarp))), dim3(kColumnLanes * kWarp)};
  launch(ctx, name, grid, add_columns<T>, x, y, rows, size);
}

// A thread's sums of the columns from `first` go into its group's partial row (may be null), or are
// added to what it left there.
template <typename A, int W>
__device__ inline void leave_partial(A* partial, int32_t first, int32_t size, const A (&sums)[W],
                                     bool add) {
  if (!partial) return;
  BALORA_UNROLL
  for (int j = 0; j < W; ++j) {
    if (first + j < size) partial[first + j] = add ? partial[first + j] + sums[j] : sums[j];
  }
}

// How many groups share the rows where each leaves a partial sum of columns: writing and reading
// them back costs a sixth of the rows' own traffic or, with few rows, stays small.
inline int64_t partial_groups(int64_t rows) {
  return std::clamp<int64_t>(ceil_div(rows, 8), 512, 4096);
}

}  // namespace balora::cuda
