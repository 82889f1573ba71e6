// The row loops of attention (attention_tiles.h) for tiles of bf16 multiplied as such, in
// AVX512-BF16 instructions: whole vectors of rows are transposed, interleaved and rounded where a
// compiler leaves loops over bf16 scalar. Only where tile_gemm_has_bf16().
#pragma once
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/products/tiles_target.h"

#ifdef BALORA_TILES
namespace balora::attention::lanes {

// Like Packing<bf16, bf16>.
void rows_left(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);
void rows_right(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);
void columns_left(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);
void columns_right(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);

// Like Unpacking<bf16>.
void unpack_rows(const float* sums, int64_t ld, bf16* out, int64_t stride, int64_t rows,
                 int64_t size);
void unpack_columns(const float* sums, int64_t ld, const float* factors, bf16* out, int64_t stride,
                    int64_t rows, int64_t size);
void row_dots(const Source<bf16>& x, const Source<bf16>& y, float* out);

// 16 queries against the keys [first, last), both even: p = e^(s * scale - highest), as row pairs;
// sum gets the sum over keys. Rows of s and row pairs of p are ld and 2 ld apart.
void exponentials(const float* s, int64_t ld, int64_t first, int64_t last, float scale,
                  const float* highest, bf16* p, float* sum);

// Like ScoreGradient<bf16>, without soft-cap.
void score_gradient(const GradTile<bf16>& tile);

}  // namespace balora::attention::lanes
#endif
