// Weights that stay in blocks of codes in memory, as encodings (tensor/view.h): bitsandbytes' 4-bit
// and int8 weights, and GGUF's block types. Every value is the float32 product that the format's
// reference defines, each operation rounded once; dequantize.h has the order for GGUF's types.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "io/ggml_types.h"
#include "tensor/view.h"

namespace balora::io {

// The parts of a 4-bit weight of `count` elements in one piece of memory, each aligned to 64 bytes.
// Element i is code[nibble] * absmax[i / block], byte j holding 2j in its high nibble. Nested
// (double quantisation): absmax[b] = map[u8[b]] * nested_absmax[b / nested_block] + offset.
struct FourBitLayout {
  int64_t count, block;
  int64_t nested_block = 0;  // 0: absmax stands as f32

  int64_t packed_bytes() const { return (count + 1) / 2; }
  int64_t blocks() const { return (count + block - 1) / block; }
  int64_t nested_blocks() const { return (blocks() + nested_block - 1) / nested_block; }
  int64_t absmax_bytes() const { return nested_block ? blocks() : 4 * blocks(); }
  int64_t absmax_at() const { return aligned(packed_bytes()); }
  int64_t nested_at() const { return aligned(absmax_at() + absmax_bytes()); }
  int64_t map_at() const { return aligned(nested_at() + 4 * nested_blocks()); }
  int64_t bytes() const { return nested_block ? map_at() + 4 * kMapSize : nested_at(); }

  static constexpr int64_t kMapSize = 256;

 private:
  static constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
};

using FourBitCode = std::array<float, 16>;

// `offset` is read where the layout is nested. `name`: "NF4", "FP4".
std::shared_ptr<const balora_encoding> four_bit_encoding(const char* name,
                                                         const FourBitLayout& layout,
                                                         const FourBitCode& code, float offset);

// Rows of int8: element (o,i) is (weight * scale[o]) / 127. The scales are f32, behind the weights
// at int8_scales_at() of the memory.
std::shared_ptr<const balora_encoding> int8_encoding(int64_t rows, int64_t columns);
int64_t int8_scales_at(int64_t rows, int64_t columns);
int64_t int8_bytes(int64_t rows, int64_t columns);

// A type that is decoded (GgmlTypeInfo::decoded).
std::shared_ptr<const balora_encoding> ggml_encoding(const GgmlTypeInfo& type);

// The codes of NF4 (Dettmers et al. 2023) and bitsandbytes' FP4, in the order of their indices.
const FourBitCode& nf4_code();
const FourBitCode& fp4_code();

// Encodes as NF4, bit for bit as bitsandbytes 0.50 does on the CPU: the blocks [begin, end) of a
// weight of `count` finite values, `block` of them even. The low nibble behind an odd count is 7.
void encode_nf4(const float* values, int64_t count, int64_t block, int64_t begin, int64_t end,
                uint8_t* packed, float* absmax);

// The dynamic map by which bitsandbytes encodes absmax: 256 ascending values in [-1, 1].
const std::array<float, FourBitLayout::kMapSize>& dynamic_map();
// absmax as codes of the dynamic map, blocks of kNestedBlock: the offset is the mean, rounded to
// f32 from a sum in f64.
constexpr int64_t kNestedBlock = 256;
float encode_absmax(const float* absmax, int64_t count, uint8_t* codes, float* nested_absmax);

}  // namespace balora::io
