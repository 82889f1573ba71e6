// The row loops of attention (attention_tiles.h) in AVX-512 instructions, for tiles of f32 and what
// those of bf16 share with them: whole vectors of rows are transposed, where a compiler gathers
// elements, and an exponential takes half of the instructions. Only where there is AVX-512.
#pragma once
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/products/tiles_target.h"

#ifdef BALORA_TILES
namespace balora::attention::avx512 {

// rows is like Packing<T, float>::rows_left and rows_right, columns like columns_left and
// columns_right; the others are like those of Unpacking<T>.
#define OPERANDS(T)                                                                                \
  void rows(const Source<T>& s, float* out, int64_t r, int64_t d);                                 \
  void columns(const Source<T>& s, float* out, int64_t r, int64_t d);                              \
  void unpack_rows(const float* sums, int64_t ld, T* out, int64_t stride, int64_t count,           \
                   int64_t size);                                                                  \
  void unpack_columns(const float* sums, int64_t ld, const float* factors, T* out, int64_t stride, \
                      int64_t count, int64_t size);                                                \
  void row_dots(const Source<T>& x, const Source<T>& y, float* out);
OPERANDS(float)
OPERANDS(bf16)
OPERANDS(f16)
#undef OPERANDS

// Like Softmax, with a positive scale and without soft-cap.
void softmax(const SoftmaxTile<float>& tile);
void softmax(const SoftmaxTile<bf16>& tile);

// Like ScoreGradient<float>, without soft-cap.
void score_gradient(const GradTile<float>& tile);

// Like the function of that name in attention_tiles.h.
void whole_gradient(const WholePair& pair);

}  // namespace balora::attention::avx512
#endif
