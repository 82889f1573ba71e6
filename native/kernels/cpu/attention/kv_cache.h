// The cache of keys and values (kernels/operands/attention.h) as the CPU's kernels read it: it is
// checked, and has the blocks of every sequence as pointers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/kernel_table.h"
#include "kernels/shared/messages.h"

namespace balora::kv_cache {

constexpr int64_t kBlock = BALORA_CACHE_BLOCK;
// Kernels go through the channels of a head in steps of a block.
static_assert(BALORA_CACHE_CHANNELS % BALORA_CACHE_BLOCK == 0);

// Rows [begin, end) of a call, and the positions of their sequence.
struct Sequence {
  int64_t begin, end;
  int64_t length;
  int64_t first;                  // of the blocks that are kept
  char* const* blocks = nullptr;  // from that one on: where the layer's keys begin

  int64_t rows() const { return end - begin; }
};

// The cache in one layer. Of each block, the keys of head h begin h * head_elements after its
// pointer, and the values values_at further.
class Layer {
 public:
  // `causal`: rows are the last positions of their sequences.
  Layer(const balora_kv_cache& cache, const View* cu_rows, int64_t rows, bool causal) {
    const View& shape = *cache.chunks[0];
    heads_ = shape.shape[3], padded_ = shape.shape[5];
    const int64_t size = dtype_size(static_cast<DType>(shape.dtype));
    part_bytes_ = heads_ * head_elements() * size;
    read_sequences(cache, cu_rows, rows, causal);
    take_blocks(cache);
  }

  const std::vector<Sequence>& sequences() const { return sequences_; }
  int64_t heads() const { return heads_; }
  // Channels of a head as they are stored.
  int64_t padded() const { return padded_; }
  // Elements of a head's keys, or its values, in a block.
  int64_t head_elements() const { return kBlock * padded_; }
  int64_t values_at() const { return heads_ * head_elements(); }

 private:
  void read_sequences(const balora_kv_cache& cache, const View* cu_rows, int64_t rows,
                      bool causal) {
    const auto* bounds = data_of<int32_t>(cu_rows);
    const auto* lengths = data_of<int32_t>(cache.lengths);
    const auto* first = cache.first_blocks ? data_of<int32_t>(cache.first_blocks) : nullptr;
    const int64_t count = cache.lengths->shape[0];
    if (bounds[0] != 0 || bounds[count] != rows) {
      throw ArgumentError(messages::segment_ends(rows, bounds[0], bounds[count]));
    }
    for (int64_t b = 0; b < count; ++b) {
      const int64_t begin = bounds[b], end = bounds[b + 1];
      if (end < begin) throw ArgumentError(messages::segment_falls(begin, end, b + 1));
      if (lengths[b] < 0 || (causal && end - begin > lengths[b])) {
        throw ArgumentError(messages::cache_rows(end - begin, b, lengths[b]));
      }
      sequences_.push_back({.begin = begin,
                            .end = end,
                            .length = lengths[b],
                            .first = first ? std::max(first[b], 0) : 0});
    }
  }

  void take_blocks(const balora_kv_cache& cache) {
    std::vector<int64_t> ends;  // of the chunks' blocks
    for (int32_t i = 0; i < cache.chunk_count; ++i) {
      ends.push_back((ends.empty() ? 0 : ends.back()) + cache.chunks[i]->shape[0]);
    }
    const auto place = [&](int64_t id) {
      const auto chunk = std::upper_bound(ends.begin(), ends.end(), id) - ends.begin();
      const View& view = *cache.chunks[chunk];
      const int64_t own = id - ends[static_cast<size_t>(chunk)] + view.shape[0];
      return static_cast<char*>(view.data) + (own * view.shape[1] + cache.layer) * 2 * part_bytes_;
    };
    const auto* tables = data_of<int32_t>(cache.tables);
    const int64_t width = cache.tables->shape[1], all = ends.back();
    blocks_.resize(sequences_.size() * static_cast<size_t>(width));
    for (size_t b = 0; b < sequences_.size(); ++b) {
      Sequence& sequence = sequences_[b];
      const auto number = static_cast<int64_t>(b);
      const int64_t used = (sequence.length + kBlock - 1) / kBlock - sequence.first;
      if (used > width) {
        throw ArgumentError(messages::cache_blocks(number, sequence.length, width));
      }
      char** const own = blocks_.data() + number * width;
      for (int64_t i = 0; i < used; ++i) {
        const int32_t id = tables[number * width + i];
        if (id < 0 || id >= all) throw ArgumentError(messages::cache_block(id, number, all));
        own[i] = place(id);
      }
      sequence.blocks = own;
    }
  }

  int64_t heads_, padded_, part_bytes_;
  std::vector<Sequence> sequences_;
  std::vector<char*> blocks_;
};

}  // namespace balora::kv_cache
