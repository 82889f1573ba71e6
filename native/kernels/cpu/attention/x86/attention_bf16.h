// The core of attention in AVX512-BF16 instructions, for tiles of bf16 multiplied as such: vectors
// of rows are transposed, interleaved and rounded, where a compiler leaves loops over bf16 scalar.
#pragma once
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/runtime/x86/targets.h"

namespace balora::attention::x86 {

// Members of the core (attention_tiles.h).
void rows_left(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);
void rows_right(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);
void columns_left(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);
void columns_right(const Source<bf16>& s, bf16* out, int64_t r, int64_t d);
void unpack_rows(const float* sums, int64_t ld, bf16* out, int64_t stride, int64_t rows,
                 int64_t size);
void unpack_columns(const float* sums, int64_t ld, const float* factors, bf16* out, int64_t stride,
                    int64_t rows, int64_t size);
void row_dots(const Source<bf16>& x, const Source<bf16>& y, float* out);

// 16 queries against the keys [first, last), both even: p = e^(s * scale - highest), as row pairs;
// sum gets the sum over keys. Rows of s and row pairs of p are ld and 2 ld apart.
void exponentials(const float* s, int64_t ld, int64_t first, int64_t last, float scale,
                  const float* highest, bf16* p, float* sum);

}  // namespace balora::attention::x86
