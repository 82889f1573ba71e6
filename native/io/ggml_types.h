// The element types of GGUF tensors: ggml's numbering, block sizes and byte sizes (ggml.h,
// ggml-common.h). A type that balora does not decode still has its sizes here, so that a file's
// layout can be checked and the type named.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace balora::io {

enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
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
