// The row loops of low_precision_gram.h on bf16, in AVX512-BF16 instructions: whole
// vectors are rounded and interleaved where a compiler leaves loops over bf16 scalar. Only
// where tile_gemm_has_bf16().
#pragma once
#include <cstdint>

#include "tensor/dtype.h"

namespace balora::lanes {

// 16 lines of 16 words, each of two values that follow each other in k: from two rows of W, which
// are ld apart (across), or along one.
void read_lines(const float* w, int64_t ld, bool across, uint32_t* words);
void read_lines(const bf16* w, int64_t ld, bool across, uint32_t* words);
void read_lines(const f16* w, int64_t ld, bool across, uint32_t* words);

// Row pairs of x (rows,cols) as words; in `rest`, if not null, what that rounding takes off them.
// rows is even, cols a multiple of 16.
void pack_pairs(const float* x, int64_t rows, int64_t cols, uint32_t* to, uint32_t* rest);

// 16 x 16 values, rounded; or what that rounding takes off them.
void round_lines(const float* from, int64_t from_ld, bool rest, bf16* to, int64_t to_ld);

}  // namespace balora::lanes
