// Readings of a whole file, as loading a model would do it, for tests with damaged files.
#pragma once
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "io/dequantize.h"
#include "io/gguf.h"
#include "io/json_cursor.h"
#include "io/safetensors.h"

namespace balora::io::test {

inline std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline void consume_gguf(std::span<const std::byte> bytes) {
  const GgufHeader header = parse_gguf("fuzz", bytes);
  for (const GgufTensor& tensor : header.tensors) {
    if (!tensor.type->decoded) continue;
    const int64_t n = static_cast<int64_t>(tensor.bytes) / tensor.type->bytes * tensor.type->block;
    std::vector<float> out(static_cast<size_t>(n));
    dequantize(*tensor.type, bytes.data() + tensor.begin, 0, n, DType::kF32, out.data());
    find_non_finite(DType::kF32, out.data(), n);
  }
}

inline void consume_safetensors(std::span<const std::byte> bytes) {
  const SafetensorsHeader header = parse_safetensors("fuzz", bytes);
  for (const SafetensorsEntry& entry : header.entries) {
    if (!entry.dtype) continue;
    const int64_t n = static_cast<int64_t>(entry.end - entry.begin) / dtype_size(*entry.dtype);
    std::vector<std::byte> out(entry.end - entry.begin);
    convert(*entry.dtype, bytes.data() + entry.begin, 0, n, *entry.dtype, out.data());
  }
}

inline void consume_index(std::span<const std::byte> bytes) {
  parse_safetensors_index("fuzz", text_of(bytes));
}

// Any JSON value.
inline void consume_json(std::span<const std::byte> bytes) {
  JsonCursor cursor("fuzz", 0, "text", text_of(bytes));
  cursor.skip_value();
  cursor.end();
}

}  // namespace balora::io::test
