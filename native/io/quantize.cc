// Types of one or 32 elements a block. Layouts: ggml-common.h. The choice of scales is that of the
// functions quantize_row_<type>_ref in ggml-quants.c.
#include "io/quantize.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "tensor/dtype.h"

namespace balora::io {
namespace {

constexpr int kBlock = 32;

template <typename T>
void store(std::byte* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

void encode_f32(const float* x, int64_t blocks, std::byte* out) {
  if (blocks > 0) std::memcpy(out, x, static_cast<size_t>(blocks) * sizeof(float));
}
void encode_f16(const float* x, int64_t blocks, std::byte* out) {
  for (int64_t i = 0; i < blocks; ++i) store(out + 2 * i, to_f16(x[i]));
}
void encode_bf16(const float* x, int64_t blocks, std::byte* out) {
  for (int64_t i = 0; i < blocks; ++i) store(out + 2 * i, to_bf16(x[i]));
}

float inverse(float d) {
  return d != 0 ? 1.0f / d : 0.0f;
}

// d f16, 32 x i8; the largest magnitude becomes 127
void encode_q8_0(const float* x, int64_t blocks, std::byte* out) {
  for (; blocks-- > 0; x += kBlock, out += 34) {
    float largest = 0;
    for (int i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float d = largest / 127.0f, scale = inverse(d);
    store(out, to_f16(d));
    for (int i = 0; i < kBlock; ++i)
      store(out + 2 + i, static_cast<int8_t>(std::round(x[i] * scale)));
  }
}

// 32 values of five bits: the low four as nibbles (element i in the low one of byte i, element
// 16 + i in the high one), behind a word of the fifth bits.
void store_five_bits(const int (&q)[kBlock], std::byte* out) {
  uint32_t high = 0;
  for (int i = 0; i < kBlock; ++i) high |= static_cast<uint32_t>(q[i] >> 4) << i;
  store(out, high);
  for (int i = 0; i < 16; ++i)
    store(out + 4 + i, static_cast<uint8_t>((q[i] & 15) | ((q[i + 16] & 15) << 4)));
}

// d f16, fifth bits, nibbles; the value of the largest magnitude becomes -16
void encode_q5_0(const float* x, int64_t blocks, std::byte* out) {
  for (; blocks-- > 0; x += kBlock, out += 22) {
    float magnitude = 0, extreme = 0;
    for (int i = 0; i < kBlock; ++i) {
      if (std::fabs(x[i]) <= magnitude) continue;
      magnitude = std::fabs(x[i]);
      extreme = x[i];
    }
    const float d = extreme / -16.0f, scale = inverse(d);
    int q[kBlock];
    for (int i = 0; i < kBlock; ++i) q[i] = std::min(31, static_cast<int>(x[i] * scale + 16.5f));
    store(out, to_f16(d));
    store_five_bits(q, out + 2);
  }
}

// d f16, m f16, fifth bits, nibbles; the values from least to largest become 0 to 31
void encode_q5_1(const float* x, int64_t blocks, std::byte* out) {
  for (; blocks-- > 0; x += kBlock, out += 24) {
    const auto [least, largest] = std::minmax_element(x, x + kBlock);
    const float m = *least, d = (*largest - m) / 31.0f, scale = inverse(d);
    int q[kBlock];
    for (int i = 0; i < kBlock; ++i)
      q[i] = std::min(31, static_cast<int>(std::floor((x[i] - m) * scale + 0.5f)));
    store(out, to_f16(d));
    store(out + 2, to_f16(m));
    store_five_bits(q, out + 4);
  }
}

}  // namespace

BlockEncoder find_block_encoder(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return encode_f32;
    case GgmlType::kF16:
      return encode_f16;
    case GgmlType::kBF16:
      return encode_bf16;
    case GgmlType::kQ8_0:
      return encode_q8_0;
    case GgmlType::kQ5_0:
      return encode_q5_0;
    case GgmlType::kQ5_1:
      return encode_q5_1;
    default:
      return find_k_quant_encoder(type);
  }
}

std::string encoded_ggml_types() {
  std::string names;
  for (uint32_t id = 0; id <= static_cast<uint32_t>(GgmlType::kBF16); ++id) {
    const GgmlTypeInfo* type = find_ggml_type(id);
    if (type == nullptr || find_block_encoder(static_cast<GgmlType>(id)) == nullptr) continue;
    names += (names.empty() ? "" : ", ") + std::string(type->name);
  }
  return names;
}

}  // namespace balora::io
