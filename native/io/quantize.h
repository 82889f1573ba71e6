// Encodes f32 values as GGUF's types: the inverse of dequantize.h. Blocks are independent, so a
// caller may split the work over threads. Every encoder chooses scales as ggml's reference does
// without an importance matrix (ggml-quants.c), in f32 and in its order, so the values that are
// decoded again are those of llama-quantize.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "io/ggml_types.h"

namespace balora::io {

// `blocks` blocks from blocks * type.block finite floats to blocks * type.bytes bytes.
using BlockEncoder = void (*)(const float* values, int64_t blocks, std::byte* out);

// Null for a type that is not encoded.
BlockEncoder find_block_encoder(GgmlType type);    // F32, F16, BF16, Q8_0, Q5_0, Q5_1
BlockEncoder find_k_quant_encoder(GgmlType type);  // Q4_K, Q5_K, Q6_K

std::string encoded_ggml_types();  // "F32, F16, ...": for errors

}  // namespace balora::io
