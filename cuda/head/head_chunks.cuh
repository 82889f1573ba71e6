// How the rows of the language-model head go through in chunks: how many at a time, and how far
// apart their logits lie.
#pragma once
#include "runtime/blas.cuh"

namespace balora::cuda {

constexpr int64_t kDefaultChunkBytes = int64_t{128} << 20;
constexpr int64_t kLeastChunkRows = 384;  // the products would wait for memory with fewer

// Elements from one row of logits to the next: rows start at 16-byte addresses.
inline int64_t logits_stride(int64_t vocabulary) {
  return ceil_div(vocabulary, 8) * 8;
}

// Rows of m in a chunk, each of which takes `row_bytes` of scratch.
inline int64_t head_chunk_rows(const HeadOptions& options, int64_t m, int64_t row_bytes) {
  int64_t rows = std::max<int64_t>(options.chunk_bytes / row_bytes, 1);
  if (options.chunk_bytes <= 0) rows = std::max(kDefaultChunkBytes / row_bytes, kLeastChunkRows);
  if (rows > 128) rows -= rows % 128;
  return std::min(rows, m);
}

inline GemmOperand rows_of(const View& view, int64_t first) {
  const int64_t cols = view.shape[1];
  return {offset_by(view.data, first * cols, view.dtype), view.dtype, cols};
}

}  // namespace balora::cuda
