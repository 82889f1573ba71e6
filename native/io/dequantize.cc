#include "io/dequantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/shared/blocks.h"
#include "platform/cpu.h"
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

// A type with blocks of several elements.
template <typename Type>
inline __attribute__((always_inline)) void decode_blocks(const std::byte* data, int64_t blocks,
                                                         float* __restrict out) {
  const auto* p = reinterpret_cast<const uint8_t*>(data);
  for (; blocks-- > 0; p += Type::kBytes, out += Type::kBlock) {
    for (int g = 0; g < Type::kBlock / 16; ++g) {
      const auto group = Type::group(p, g);
#pragma omp simd
      for (int k = 0; k < 16; ++k) {
        out[16 * g + k] = Type::value(group, k, blocks::kIq4Values);
      }
    }
  }
}

// AVX2 without fused multiply-adds, which would round a product and its sum once (blocks::product):
// so not a loop of at_level.
template <typename Type>
struct Decoder {
  static void any(const std::byte* data, int64_t blocks, float* out) {
    decode_blocks<Type>(data, blocks, out);
  }
  BALORA_ON_X86(__attribute__((target("avx2"))) static void avx2(const std::byte* data,
                                                                 int64_t blocks, float* out) {
    decode_blocks<Type>(data, blocks, out);
  })
  static BlockDecoder chosen() {
    BALORA_ON_X86(if (platform::cpu().uses(platform::kAvx2)) return avx2;)
    return any;
  }
};

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
#define DECODER(name)     \
  case GgmlType::k##name: \
    return Decoder<blocks::name>::chosen();
      BALORA_BLOCK_TYPES(DECODER)
#undef DECODER
    default:
      return nullptr;
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
