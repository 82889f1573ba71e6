// Types of one or 32 elements a block, the two IQ4 types, and element
// conversion. Layouts: ggml-common.h.
#include "io/dequantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tensor/errors.h"

namespace balora::io {
namespace {

constexpr int64_t kChunk = 256;  // elements decoded at a time before rounding to bf16

template <typename T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
float half(const std::byte* p) {
  return to_float(load<f16>(p));
}
int byte(const std::byte* p) {
  return static_cast<int>(*p);
}
int signed_byte(const std::byte* p) {
  return static_cast<int8_t>(*p);
}

void decode_f32(const std::byte* data, int64_t blocks, float* out) {
  if (blocks == 0) return;  // an empty tensor's pointer may be null
  std::memcpy(out, data, static_cast<size_t>(blocks) * sizeof(float));
}
void decode_f16(const std::byte* data, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = half(data + 2 * i);
}
void decode_bf16(const std::byte* data, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = to_float(load<bf16>(data + 2 * i));
}

// d f16, 32 x i8
void decode_q8_0(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 34, out += 32) {
    const float d = half(p);
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(signed_byte(p + 2 + i));
  }
}

// d f16, 16 bytes: element i in the low nibble of byte i, element 16 + i in the high one
void decode_q4_0(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 18, out += 32) {
    const float d = half(p);
    for (int i = 0; i < 16; ++i) {
      const int q = byte(p + 2 + i);
      out[i] = d * static_cast<float>((q & 15) - 8);
      out[i + 16] = d * static_cast<float>((q >> 4) - 8);
    }
  }
}

// d f16, m f16, nibbles
void decode_q4_1(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 20, out += 32) {
    const float d = half(p), m = half(p + 2);
    for (int i = 0; i < 16; ++i) {
      const int q = byte(p + 4 + i);
      out[i] = d * static_cast<float>(q & 15) + m;
      out[i + 16] = d * static_cast<float>(q >> 4) + m;
    }
  }
}

// d f16, 32 fifth bits, nibbles
void decode_q5_0(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 22, out += 32) {
    const float d = half(p);
    const auto high = load<uint32_t>(p + 2);
    for (int i = 0; i < 16; ++i) {
      const int q = byte(p + 6 + i);
      const int h0 = static_cast<int>((high >> i) & 1) << 4;
      const int h1 = static_cast<int>((high >> (i + 16)) & 1) << 4;
      out[i] = d * static_cast<float>(((q & 15) | h0) - 16);
      out[i + 16] = d * static_cast<float>(((q >> 4) | h1) - 16);
    }
  }
}

// d f16, m f16, 32 fifth bits, nibbles
void decode_q5_1(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 24, out += 32) {
    const float d = half(p), m = half(p + 2);
    const auto high = load<uint32_t>(p + 4);
    for (int i = 0; i < 16; ++i) {
      const int q = byte(p + 8 + i);
      const int h0 = static_cast<int>((high >> i) & 1) << 4;
      const int h1 = static_cast<int>((high >> (i + 16)) & 1) << 4;
      out[i] = d * static_cast<float>((q & 15) | h0) + m;
      out[i + 16] = d * static_cast<float>((q >> 4) | h1) + m;
    }
  }
}

// kvalues_iq4nl of ggml-common.h
constexpr float kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

void decode_iq4_nl(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 18, out += 32) {
    const float d = half(p);
    for (int i = 0; i < 16; ++i) {
      const int q = byte(p + 2 + i);
      out[i] = d * kIq4Values[q & 15];
      out[i + 16] = d * kIq4Values[q >> 4];
    }
  }
}

// d f16, scales_h u16 (2 bits a group), scales_l (4 bits a group), 8 groups of
// 32 elements in nibbles
void decode_iq4_xs(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 136, out += 256) {
    const float d = half(p);
    const int scales_high = load<uint16_t>(p + 2);
    for (int group = 0; group < 8; ++group) {
      const int low = (byte(p + 4 + group / 2) >> (4 * (group % 2))) & 15;
      const int high = (scales_high >> (2 * group)) & 3;
      const float scale = d * static_cast<float>((low | (high << 4)) - 32);
      const std::byte* q = p + 8 + 16 * group;
      for (int i = 0; i < 16; ++i) {
        out[32 * group + i] = scale * kIq4Values[byte(q + i) & 15];
        out[32 * group + i + 16] = scale * kIq4Values[byte(q + i) >> 4];
      }
    }
  }
}

double load_float(DType dtype, const std::byte* data, int64_t i) {
  switch (dtype) {
    case DType::kF32:
      return load<float>(data + 4 * i);
    case DType::kBF16:
      return to_float(load<bf16>(data + 2 * i));
    case DType::kF16:
      return to_float(load<f16>(data + 2 * i));
    default:
      return load<double>(data + 8 * i);
  }
}

void store_float(DType dtype, void* out, int64_t i, double value) {
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(out)[i] = static_cast<float>(value);
      return;
    case DType::kBF16:
      static_cast<bf16*>(out)[i] = to_bf16(static_cast<float>(value));
      return;
    case DType::kF16:
      static_cast<f16*>(out)[i] = to_f16(static_cast<float>(value));
      return;
    default:
      static_cast<double*>(out)[i] = value;
  }
}

}  // namespace

BlockDecoder find_block_decoder(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return decode_f32;
    case GgmlType::kF16:
      return decode_f16;
    case GgmlType::kBF16:
      return decode_bf16;
    case GgmlType::kQ8_0:
      return decode_q8_0;
    case GgmlType::kQ4_0:
      return decode_q4_0;
    case GgmlType::kQ4_1:
      return decode_q4_1;
    case GgmlType::kQ5_0:
      return decode_q5_0;
    case GgmlType::kQ5_1:
      return decode_q5_1;
    case GgmlType::kIQ4_NL:
      return decode_iq4_nl;
    case GgmlType::kIQ4_XS:
      return decode_iq4_xs;
    default:
      return find_k_quant_decoder(type);
  }
}

void dequantize(const GgmlTypeInfo& type, const std::byte* data, int64_t begin, int64_t end,
                DType out_dtype, void* out) {
  const BlockDecoder decode = find_block_decoder(static_cast<GgmlType>(type.id));
  if (!decode) {
    throw UnsupportedError(
        concat("GGUF type ", type.name, " is not decoded; supported: ", decoded_ggml_types()));
  }
  if (out_dtype != DType::kF32 && out_dtype != DType::kBF16) {
    throw UnsupportedError(
        concat("GGUF tensors are decoded to f32 or bf16, not ", dtype_name(out_dtype)));
  }
  if (begin % type.block != 0 || end % type.block != 0) {
    throw ArgumentError(concat("dequantize: the range [", begin, ", ", end,
                               ") is not whole blocks of ", type.block));
  }
  const std::byte* source = data + begin / type.block * type.bytes;
  if (out_dtype == DType::kF32) {
    decode(source, (end - begin) / type.block, static_cast<float*>(out) + begin);
    return;
  }
  auto* target = static_cast<bf16*>(out);
  float chunk[kChunk];
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t count = std::min(kChunk, end - at);
    decode(data + at / type.block * type.bytes, count / type.block, chunk);
    for (int64_t i = 0; i < count; ++i) target[at + i] = to_bf16(chunk[i]);
  }
}

bool can_convert(DType from, DType to) {
  return from == to || (is_float(from) && is_float(to));
}

void convert(DType from, const std::byte* data, int64_t begin, int64_t end, DType to, void* out) {
  if (!can_convert(from, to)) {
    throw UnsupportedError(concat("cannot read ", dtype_name(from), " as ", dtype_name(to)));
  }
  if (from == to) {
    const int64_t size = dtype_size(from);
    std::memcpy(static_cast<std::byte*>(out) + begin * size, data + begin * size,
                static_cast<size_t>((end - begin) * size));
    return;
  }
  // The usual pairs, in loops that vectorise.
  if (to == DType::kF32 && (from == DType::kBF16 || from == DType::kF16)) {
    const auto decode = from == DType::kBF16 ? decode_bf16 : decode_f16;
    decode(data + 2 * begin, end - begin, static_cast<float*>(out) + begin);
    return;
  }
  for (int64_t i = begin; i < end; ++i) store_float(to, out, i, load_float(from, data, i));
}

int64_t find_non_finite(DType dtype, const void* data, int64_t n) {
  if (!is_float(dtype)) return -1;
  const auto* bytes = static_cast<const std::byte*>(data);
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(load_float(dtype, bytes, i))) return i;
  }
  return -1;
}

}  // namespace balora::io
