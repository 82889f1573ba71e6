// The element types of GGUF tensors: ggml's numbering, block sizes and byte sizes (ggml.h,
// ggml-common.h). A type that balora does not decode still has its sizes here, so that a file's
// layout can be checked and the type named.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "tensor/view.h"

namespace balora::io {

enum class GgmlType : uint32_t {
  kF32 = BALORA_BLOCKS_F32,
  kF16 = BALORA_BLOCKS_F16,
  kQ4_0 = BALORA_BLOCKS_Q4_0,
  kQ4_1 = BALORA_BLOCKS_Q4_1,
  kQ5_0 = BALORA_BLOCKS_Q5_0,
  kQ5_1 = BALORA_BLOCKS_Q5_1,
  kQ8_0 = BALORA_BLOCKS_Q8_0,
  kQ2_K = BALORA_BLOCKS_Q2_K,
  kQ3_K = BALORA_BLOCKS_Q3_K,
  kQ4_K = BALORA_BLOCKS_Q4_K,
  kQ5_K = BALORA_BLOCKS_Q5_K,
  kQ6_K = BALORA_BLOCKS_Q6_K,
  kIQ4_NL = BALORA_BLOCKS_IQ4_NL,
  kIQ4_XS = BALORA_BLOCKS_IQ4_XS,
  kBF16 = BALORA_BLOCKS_BF16,
};

struct GgmlTypeInfo {
  uint32_t id;
  const char* name;
  int64_t block;  // elements
  int64_t bytes;  // of a block
  bool decoded;   // dequantize() knows it
};

// Null: no such type (or one that ggml has removed).
const GgmlTypeInfo* find_ggml_type(uint32_t id);
const GgmlTypeInfo* find_ggml_type(std::string_view name);
std::string decoded_ggml_types();  // "F32, F16, ...": for errors

}  // namespace balora::io
