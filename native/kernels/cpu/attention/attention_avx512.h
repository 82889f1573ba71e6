// The row loops of attention (attention_tiles.h) in AVX-512 instructions, for tiles of f32 and what
// those of bf16 share with them: whole vectors of rows are transposed, where a compiler gathers
// elements, and an exponential takes half of the instructions. Only where tile_gemm_has_avx512().
#pragma once
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/products/tiles_target.h"

#ifdef BALORA_TILES
namespace balora::attention::avx512 {

// Like Packing<T, float>::columns_left and columns_right.
void columns(const Source<float>& s, float* out, int64_t r, int64_t d);
void columns(const Source<bf16>& s, float* out, int64_t r, int64_t d);
void columns(const Source<f16>& s, float* out, int64_t r, int64_t d);

// Like Unpacking<T>::columns.
void unpack_columns(const float* sums, int64_t ld, const float* factors, float* out, int64_t stride,
                    int64_t rows, int64_t size);
void unpack_columns(const float* sums, int64_t ld, const float* factors, bf16* out, int64_t stride,
                    int64_t rows, int64_t size);
void unpack_columns(const float* sums, int64_t ld, const float* factors, f16* out, int64_t stride,
                    int64_t rows, int64_t size);

// Like Unpacking<T>::row_dots.
void row_dots(const Source<float>& x, const Source<float>& y, float* out);
void row_dots(const Source<bf16>& x, const Source<bf16>& y, float* out);
void row_dots(const Source<f16>& x, const Source<f16>& y, float* out);

// Like Softmax, with a positive scale and without soft-cap.
void softmax(const SoftmaxTile<float>& tile);
void softmax(const SoftmaxTile<bf16>& tile);

// Like ScoreGradient<float>, without soft-cap.
void score_gradient(const GradTile<float>& tile);

}  // namespace balora::attention::avx512
#endif
