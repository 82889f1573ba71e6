// Positions by the row that their index names, in order: what a scatter that must not add in an
// order of chance needs. A block owns a span of rows and reads all indices of its slab twice: once
// to count, once to place. Reads are 2 * ids bytes a span from the L2 cache, so with 512 spans and
// 8192 ids of 4 bytes 34 MB (some 10 us); nothing is sorted, and no atomic decides an order.
#pragma once
#include "device/scan.cuh"

namespace balora::cuda {

// Indices, i32 or i64.
struct Ids {
  const void* data;
  int32_t wide;
  __device__ int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};
inline Ids ids_of(const View* ids) {
  return {ids->data, ids->dtype == BALORA_I64};
}

// Where a fault of this row is reported.
struct FaultPlace {
  Fault* fault;
  int32_t row;
  __device__ void outside(int64_t index, int64_t position, int64_t limit) const {
    report_fault(fault, kIndexOutOfRange, row, index, limit, position);
  }
};
inline FaultPlace fault_place(Context* ctx, const char* name) {
  return {state_of(ctx).fault, fault_row(name)};
}

// The positions of a key are positions[slab * ids + begin, ... + end), ascending.
struct Bucket {
  int32_t begin, end;
};

// `slabs` independent lists of `ids` indices below `rows`. Position i has the key
// index * inner + i % inner, so a slab has rows * inner keys.
struct BucketTask {
  int64_t slabs, ids, rows, inner;
  int64_t span, spans;  // keys a block, blocks a slab
};

constexpr int kBucketThreads = 256, kMaxSpan = 1024;

inline BucketTask bucket_task(int64_t slabs, int64_t ids, int64_t rows, int64_t inner) {
  const int64_t span = std::clamp<int64_t>(ceil_div(rows * inner, 512), 32, kMaxSpan);
  return {slabs, ids, rows, inner, span, ceil_div(rows * inner, span)};
}

// Counts of a span's keys (kMaxSpan) become where each key's positions begin.
__device__ inline void begin_buckets(int32_t* counts, int32_t below, int64_t span, Bucket* buckets,
                                     int32_t* scratch) {
  constexpr int kEach = kMaxSpan / kBucketThreads;
  const int first = threadIdx.x * kEach;
  int32_t mine[kEach], sum = 0, total = 0;
  for (int j = 0; j < kEach; ++j) sum += mine[j] = counts[first + j];
  int32_t begin = below + block_scan(sum, scratch, total);
  for (int j = 0; j < kEach; ++j) {
    counts[first + j] = begin;
    if (first + j < span) buckets[first + j] = {begin, begin + mine[j]};
    begin += mine[j];
  }
  __syncthreads();
}

static __global__ void __launch_bounds__(kBucketThreads)
    fill_buckets(Ids ids, BucketTask t, FaultPlace place, Bucket* buckets, int32_t* positions) {
  BALORA_SHARED(int32_t, cursor, kMaxSpan);
  BALORA_SHARED(int32_t, list, kBucketThreads);
  BALORA_SHARED(int32_t, scratch, kWarp + 1);
  const int64_t slab = blockIdx.x / t.spans, low = blockIdx.x % t.spans * t.span;
  const int64_t keys = t.rows * t.inner, span = min(t.span, keys - low), from = slab * t.ids;
  const auto key_of = [&](int64_t i) { return ids[from + i] * t.inner + i % t.inner; };
  for (int i = threadIdx.x; i < kMaxSpan; i += kBucketThreads) cursor[i] = 0;
  __syncthreads();
  int32_t below = 0;
  for (int64_t i = threadIdx.x; i < t.ids; i += kBucketThreads) {
    const int64_t index = ids[from + i];
    if (index < 0 || index >= t.rows) {
      if (low == 0) place.outside(index, from + i, t.rows);
      continue;
    }
    const int64_t local = key_of(i) - low;
    if (local < 0) ++below;
    if (local >= 0 && local < span) atomicAdd(&cursor[local], 1);
  }
  below = block_reduce(below, 0, scratch);
  begin_buckets(cursor, below, span, buckets + slab * keys + low, scratch);
  for (int64_t tile = 0; tile < t.ids; tile += kBucketThreads) {
    const int64_t i = tile + threadIdx.x;
    int64_t local = -1;
    if (i < t.ids) {
      const int64_t index = ids[from + i];
      if (index >= 0 && index < t.rows) local = key_of(i) - low;
    }
    const bool mine = local >= 0 && local < span;
    if (!__syncthreads_or(mine)) continue;
    int32_t total = 0;
    const int32_t slot = block_scan(mine, scratch, total);
    if (mine) list[slot] = static_cast<int32_t>(local);
    __syncthreads();
    int32_t at = mine ? cursor[local] : 0;  // and one on for each earlier position of the tile
    for (int32_t j = 0; mine && j < slot; ++j) at += list[j] == local;
    if (mine) positions[from + at] = static_cast<int32_t>(i);
    __syncthreads();
    if (mine) atomicAdd(&cursor[local], 1);
    __syncthreads();
  }
}

struct Buckets {
  const Bucket* of_key;      // (slabs, rows * inner)
  const int32_t* positions;  // (slabs, ids)
};
inline Buckets make_buckets(Context* ctx, const char* name, const View* ids, const BucketTask& t) {
  if (t.ids > INT32_MAX) {
    throw std::runtime_error(std::string(name) + ": more than 2^31 - 1 indices");
  }
  auto* of_key = workspace<Bucket>(ctx, t.slabs * t.rows * t.inner);
  auto* positions = workspace<int32_t>(ctx, t.slabs * t.ids);
  const Grid grid{dim3(static_cast<unsigned>(t.slabs * t.spans)), dim3(kBucketThreads)};
  launch(ctx, name, grid, fill_buckets, ids_of(ids), t, fault_place(ctx, name), of_key, positions);
  return {of_key, positions};
}

}  // namespace balora::cuda
