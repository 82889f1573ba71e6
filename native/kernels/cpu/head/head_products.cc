#include "kernels/cpu/head/head_products.h"

#include <algorithm>
#include <cstddef>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/scratch.h"

namespace balora {
namespace {

// Tokens whose part of a head is widened or decoded at a time, 4 MiB in f32.
int64_t widened_tokens(const View& w) {
  constexpr int64_t kElements = int64_t{1} << 20, kLeast = 32;
  return std::max(kElements / std::max<int64_t>(w.shape[1], 1), kLeast) / kLeast * kLeast;
}

// Whether the rows of a head are read where they lie.
bool is_wide(const View& w) {
  return !w.encoding && w.dtype == BALORA_F32 && w.stride[0] == w.shape[1];
}

// Rows of heads in f32: where they lie, or in scratch, until the next are asked for.
class WidenedRows {
 public:
  WidenedRows(Context* ctx, std::span<const LogitsOf<float>> products, int64_t most)
      : ctx_(ctx),
        decoded_(ctx, most_bytes(products, most)),
        wide_(ctx, elements(products, most)) {}

  const float* rows(const View& w, int64_t first, int64_t count) const {
    const int64_t columns = w.shape[1];
    const void* from = w.encoding ? nullptr : rows_of(&w, first);
    if (is_wide(w)) return static_cast<const float*>(from);
    int64_t ld = w.stride[0];
    if (w.encoding) {  // its values are of its own type
      decode_rows(ctx_, w, first, first + count, w.dtype, decoded_.data());
      if (w.dtype == BALORA_F32) return reinterpret_cast<const float*>(decoded_.data());
      from = decoded_.data(), ld = columns;
    }
    convert_rows(ctx_, {from, w.dtype, ld}, {wide_.data(), BALORA_F32, columns}, count, columns);
    return wide_.data();
  }

 private:
  static int64_t most_bytes(std::span<const LogitsOf<float>> products, int64_t most) {
    int64_t bytes = 0;
    for (const LogitsOf<float>& product : products) {
      const View& w = *product.w;
      if (w.encoding) bytes = std::max(bytes, most * w.shape[1] * element_size(w.dtype));
    }
    return bytes;
  }
  static int64_t elements(std::span<const LogitsOf<float>> products, int64_t most) {
    int64_t count = 0;
    for (const LogitsOf<float>& product : products) {
      const View& w = *product.w;
      const bool decoded_only = w.encoding && w.dtype == BALORA_F32;
      if (!is_wide(w) && !decoded_only) count = std::max(count, most * w.shape[1]);
    }
    return count;
  }

  Context* ctx_;
  Scratch<std::byte> decoded_;
  Scratch<float> wide_;
};

}  // namespace

void widened_logits(Context* ctx, std::span<const LogitsOf<float>> products, int64_t first,
                    int64_t rows) {
  const View& w = *products[0].w;
  const int64_t vocabulary = w.shape[0], columns = w.shape[1], all = std::ssize(products);
  const Scratch<float> scratch(ctx, all * rows * columns);
  float* const wide = scratch.data();
  for (int64_t i = 0; i < all; ++i) {
    const View& h = *products[static_cast<size_t>(i)].h;
    convert_rows(ctx, {rows_of(&h, first), h.dtype, h.stride[0]},
                 {wide + i * rows * columns, BALORA_F32, columns}, rows, columns);
  }
  const int64_t block = widened_tokens(w);
  const WidenedRows heads(ctx, products, std::min(block, vocabulary));
  for (int64_t token = 0; token < vocabulary; token += block) {
    const int64_t count = std::min(block, vocabulary - token);
    const View* last = nullptr;
    const float* head = nullptr;
    for (int64_t i = 0; i < all; ++i) {
      const LogitsOf<float>& product = products[static_cast<size_t>(i)];
      if (product.w != last) head = heads.rows(*product.w, token, count);
      last = product.w;
      gemm(ctx, {rows, count, columns}, {wide + i * rows * columns, BALORA_F32, columns},
           {head, BALORA_F32, columns, true},
           {product.logits + token, BALORA_F32, logits_ld(vocabulary)});
    }
  }
}

}  // namespace balora
