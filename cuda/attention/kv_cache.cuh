// The cache of keys and values (kernels/operands/attention.h) as kernels see it: by value, its
// lists on the device. A fault in them is reported and touches nothing.
#pragma once
#include <climits>

#include "runtime/common.cuh"

namespace balora::cuda::kv_cache {

constexpr int kBlock = BALORA_CACHE_BLOCK;
constexpr int kMaxChunks = 96;  // a cache grows by a quarter at least: from 4 MiB to some petabytes

struct Cache {
  char* chunks[kMaxChunks];
  int32_t ends[kMaxChunks];  // number of blocks up to the end of each chunk
  int32_t chunk_count, sequences, width;
  const int32_t* cu_rows;
  const int32_t* lengths;
  const int32_t* tables;
  const int32_t* first_blocks;  // null: 0
  int64_t heads, padded;        // Dp
  int64_t block_elements;       // of all layers
  int64_t layer_offset;         // of the layer's keys in a block
  Fault* fault;
  int32_t row;  // of the kernel table

  __device__ int64_t head_elements() const { return kBlock * padded; }
  __device__ int64_t values_at() const { return heads * head_elements(); }
  __device__ int32_t first_block(int32_t b) const { return first_blocks ? first_blocks[b] : 0; }

  // The sequence of a row.
  __device__ int32_t sequence_of(int64_t n) const {
    int32_t low = 0, high = sequences;
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      (cu_rows[middle] <= n ? low : high) = middle;
    }
    return low;
  }

  // Whether the bounds of a row's sequence are in order.
  __device__ bool check_rows(int32_t b, int64_t rows, bool causal) const {
    const int32_t begin = cu_rows[b], end = cu_rows[b + 1];
    if (cu_rows[0] != 0 || cu_rows[sequences] != rows) {
      report_fault(fault, kSegmentEnds, row, fault_pair(cu_rows[0], cu_rows[sequences]), rows);
      return false;
    }
    if (end < begin) {
      report_fault(fault, kSegmentFalls, row, fault_pair(begin, end), b + 1);
      return false;
    }
    if (lengths[b] < 0 || (causal && end - begin > lengths[b])) {
      report_fault(fault, kCacheRows, row, fault_pair(end - begin, lengths[b]), b);
      return false;
    }
    return true;
  }

  // The layer's part of the block of a position; null after a fault.
  template <typename T>
  __device__ T* block_of(int32_t b, int32_t position) const {
    const int32_t place = position / kBlock - first_block(b);
    if (place < 0) {
      report_fault(fault, kCacheWindow, row, fault_pair(b, position), 0);
      return nullptr;
    }
    if (place >= width) {
      report_fault(fault, kCacheBlocks, row, fault_pair(b, lengths[b]), width);
      return nullptr;
    }
    const int32_t id = tables[static_cast<int64_t>(b) * width + place];
    if (id < 0 || id >= ends[chunk_count - 1]) {
      report_fault(fault, kCacheBlock, row, fault_pair(id, b), ends[chunk_count - 1]);
      return nullptr;
    }
    int chunk = 0;
    while (id >= ends[chunk]) ++chunk;
    const int64_t own = id - (chunk > 0 ? ends[chunk - 1] : 0);
    return reinterpret_cast<T*>(chunks[chunk]) + own * block_elements + layer_offset;
  }
};

inline Cache cache_of(Context* ctx, const char* name, const balora_kv_cache& o,
                      const View* cu_rows) {
  if (o.chunk_count > kMaxChunks) {
    throw std::runtime_error(std::string(name) + ": a cache of " + std::to_string(o.chunk_count) +
                             " chunks, at most " + std::to_string(kMaxChunks) + " are supported");
  }
  const View& first = *o.chunks[0];
  Cache cache{};
  int64_t blocks = 0;
  for (int32_t i = 0; i < o.chunk_count; ++i) {
    cache.chunks[i] = static_cast<char*>(o.chunks[i]->data);
    blocks += o.chunks[i]->shape[0];
    cache.ends[i] = narrowed(blocks, "a number of blocks of");
  }
  cache.chunk_count = o.chunk_count;
  cache.sequences = narrowed(o.lengths->shape[0], "a number of sequences of");
  cache.width = narrowed(o.tables->shape[1], "a number of blocks of");
  cache.cu_rows = data_of<const int32_t>(cu_rows);
  cache.lengths = data_of<const int32_t>(o.lengths);
  cache.tables = data_of<const int32_t>(o.tables);
  cache.first_blocks = data_of<const int32_t>(o.first_blocks);
  cache.heads = first.shape[3], cache.padded = first.shape[5];
  cache.block_elements = first.stride[0];
  cache.layer_offset = o.layer * first.stride[1];
  cache.fault = state_of(ctx).fault;
  cache.row = fault_row(name);
  return cache;
}

}  // namespace balora::cuda::kv_cache
