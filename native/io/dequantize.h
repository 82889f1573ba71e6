// Decodes GGUF's block types to f32 or bf16, and converts between element types. Plain functions
// over a range, so that a caller may split the work over threads; inputs need no alignment. The
// formulas of the blocks are kernels/shared/blocks.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "io/ggml_types.h"
#include "tensor/dtype.h"

namespace balora::io {

// Elements [begin, end) of a tensor whose blocks start at `data`; begin and end are multiples of
// type.block. `out` is the start of the whole output, of dtype kF32 or kBF16 (rounded to nearest
// even). Throws UnsupportedError for a type that is not decoded.
void dequantize(const GgmlTypeInfo& type, const std::byte* data, int64_t begin, int64_t end,
                DType out_dtype, void* out);

// Elements [begin, end): float to float (through f32, or f64 where both sides allow), or a copy
// where the types are equal. Throws UnsupportedError for a conversion between integers and floats.
void convert(DType from, const std::byte* data, int64_t begin, int64_t end, DType to, void* out);
bool can_convert(DType from, DType to);

// Index of the first NaN or infinity among n elements, or -1; integers have none.
int64_t find_non_finite(DType dtype, const void* data, int64_t n);

// One decoder a type: `blocks` blocks from `data` to blocks * type.block floats.
using BlockDecoder = void (*)(const std::byte* data, int64_t blocks, float* out);
BlockDecoder find_block_decoder(GgmlType type);  // null: not decoded

}  // namespace balora::io
