// How the rows of the language-model head go through in chunks: how many at a time, and how far
// apart their logits lie.
#pragma once
#include <initializer_list>

#include "products/encoded.cuh"
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

// Logits with a scale of their own are the CPU's alone.
inline void refuse_logit_scale(const char* op, const HeadOptions& options) {
  if (options.logit_scale == 0 || options.logit_scale == 1) return;
  throw UnsupportedError(concat(op, ": a scale of the logits is taken on the CPU alone"));
}

inline GemmOperand rows_of(const View& view, int64_t first) {
  const int64_t cols = view.shape[1];
  return {offset_by(view.data, first * cols, view.dtype), view.dtype, cols};
}

// A head's weight W (V,C) in products. One in blocks is decoded for each product, in panels of rows
// that stand in scratch one after the other.
class HeadWeight {
 public:
  HeadWeight(Context* ctx, const View& w) : ctx_(ctx), w_(w), slice_(w.shape[0]) {
    if (!w.encoding) return;
    slice_ = slice_of(ctx_, w.shape[0], columns() * element_size(w.dtype));
    panel_ = workspace<char>(ctx, slice_ * columns() * element_size(w.dtype));
  }

  // Whether the terms of a product with W are added one after the other, so that its result must be
  // as wide as the sum.
  bool adds_up() const { return slice_ < w_.shape[0]; }

  // Logits (rows,V) = h W^T, rows of both `stride` apart.
  struct Logits {
    GemmOperand h;
    void* to;
  };
  void logits(std::initializer_list<Logits> products, int64_t rows, int32_t dtype, int64_t stride) {
    for_each_slice([&](int64_t first, int64_t count, const GemmOperand& w) {
      const GemmOperand turned = {w.data, w.dtype, w.stride, true};
      for (const Logits& product : products) {
        gemm(ctx_, {rows, count, columns()}, 1, product.h, turned, 0,
             {offset_by(product.to, first, dtype), dtype, stride});
      }
    });
  }

  // to (rows,C) = z (rows,V) W + beta to
  void back(const GemmOperand& z, int64_t rows, double beta, const GemmResult& to) {
    for_each_slice([&](int64_t first, int64_t count, const GemmOperand& w) {
      const GemmOperand part = {offset_by(z.data, first, z.dtype), z.dtype, z.stride};
      gemm(ctx_, {rows, columns(), count}, 1, part, w, first > 0 ? 1 : beta, to);
    });
  }

 private:
  int64_t columns() const { return w_.shape[1]; }
  template <typename Body>
  void for_each_slice(const Body& body) {
    if (!panel_) return body(0, w_.shape[0], GemmOperand{w_.data, w_.dtype, columns()});
    for (int64_t first = 0; first < w_.shape[0]; first += slice_) {
      const int64_t count = std::min(slice_, w_.shape[0] - first);
      decode_panel(ctx_, w_, {first, count, 0, columns()}, {panel_, w_.dtype, columns()});
      body(first, count, GemmOperand{panel_, w_.dtype, columns()});
    }
  }

  Context* ctx_;
  const View& w_;
  int64_t slice_;
  void* panel_ = nullptr;
};

}  // namespace balora::cuda
