#include "kernels/cpu/head/head_products.h"

#include <algorithm>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/onednn.h"

namespace balora {
namespace {

// Tokens whose part of a head is widened or decoded at a time, 4 MiB in f32.
int64_t widened_tokens(const View& w) {
  constexpr int64_t kElements = int64_t{1} << 20, kLeast = 32;
  return std::max(kElements / std::max<int64_t>(w.shape[1], 1), kLeast) / kLeast * kLeast;
}

// The rows [first, first + count) of a head in f32: where they lie, or in scratch.
const float* widened_rows(Context* ctx, const View& w, int64_t first, int64_t count) {
  const int64_t columns = w.shape[1];
  const void* from = w.encoding ? nullptr : rows_of(&w, first);
  int64_t ld = w.stride[0];
  if (!w.encoding && w.dtype == BALORA_F32 && ld == columns) return static_cast<const float*>(from);
  const auto scratch = [&](CpuState::Scratch index, int32_t dtype) {
    return CpuState::of(ctx).scratch(index,
                                     static_cast<uint64_t>(count * columns * element_size(dtype)));
  };
  if (w.encoding) {  // its values are of its own type
    void* const decoded = scratch(CpuState::kDecoded, w.dtype);
    decode_rows(ctx, w, first, first + count, w.dtype, decoded);
    if (w.dtype == BALORA_F32) return static_cast<const float*>(decoded);
    from = decoded, ld = columns;
  }
  auto* const wide = static_cast<float*>(scratch(CpuState::kWideB, BALORA_F32));
  convert_rows(ctx, {from, w.dtype, ld}, {wide, BALORA_F32, columns}, count, columns);
  return wide;
}

}  // namespace

void widened_logits(Context* ctx, std::span<const LogitsOf<float>> products, int64_t first,
                    int64_t rows) {
  const View& w = *products[0].w;
  const int64_t vocabulary = w.shape[0], columns = w.shape[1], all = std::ssize(products);
  auto* const wide = static_cast<float*>(CpuState::of(ctx).scratch(
      CpuState::kWideA, static_cast<uint64_t>(all * rows * columns) * sizeof(float)));
  for (int64_t i = 0; i < all; ++i) {
    const View& h = *products[static_cast<size_t>(i)].h;
    convert_rows(ctx, {rows_of(&h, first), h.dtype, h.stride[0]},
                 {wide + i * rows * columns, BALORA_F32, columns}, rows, columns);
  }
  const int64_t block = widened_tokens(w);
  for (int64_t token = 0; token < vocabulary; token += block) {
    const int64_t count = std::min(block, vocabulary - token);
    const View* last = nullptr;
    const float* head = nullptr;
    for (int64_t i = 0; i < all; ++i) {
      const LogitsOf<float>& product = products[static_cast<size_t>(i)];
      if (product.w != last) head = widened_rows(ctx, *product.w, token, count);
      last = product.w;
      gemm(ctx, {rows, count, columns}, {wide + i * rows * columns, BALORA_F32, columns},
           {head, BALORA_F32, columns, true},
           {product.logits + token, BALORA_F32, logits_ld(vocabulary)});
    }
  }
}

}  // namespace balora
