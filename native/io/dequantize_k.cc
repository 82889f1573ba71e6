// The K-quants: super-blocks of 256 elements with quantised scales. Layouts and order of
// operations: ggml-quants.c (dequantize_row_q2_K .. q6_K).
#include <cstring>

#include "io/dequantize.h"

namespace balora::io {
namespace {

constexpr int kSuper = 256;

float half(const std::byte* p) {
  f16 value;
  std::memcpy(&value, p, sizeof value);
  return to_float(value);
}
int byte(const std::byte* p) {
  return static_cast<int>(*p);
}

// scales[16] (low nibble scale, high nibble minimum), qs[64] (2 bits), d, dmin
void decode_q2_k(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 84, out += kSuper) {
    const float d = half(p + 80), dmin = half(p + 82);
    const std::byte* qs = p + 16;
    for (int i = 0; i < kSuper; ++i) {
      // 128 elements share 32 bytes, two bits each; a scale serves 16 elements.
      const int scale = byte(p + i / 16);
      const int q = (byte(qs + i / 128 * 32 + i % 32) >> (2 * (i % 128 / 32))) & 3;
      const float dl = d * static_cast<float>(scale & 15);
      const float ml = dmin * static_cast<float>(scale >> 4);
      out[i] = dl * static_cast<float>(q) - ml;
    }
  }
}

// hmask[32] (third bit, inverted), qs[64] (2 bits), scales[12] (16 x 6 bits), d
void decode_q3_k(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 110, out += kSuper) {
    const float d = half(p + 108);
    const std::byte* qs = p + 32;
    const std::byte* packed = p + 96;
    for (int group = 0; group < 16; ++group) {
      // Low four bits: nibbles of bytes 0-7; high two bits: bytes 8-11, a pair of
      // bits for each quarter.
      const int low = (byte(packed + group % 8) >> (4 * (group / 8))) & 15;
      const int high = (byte(packed + 8 + group % 4) >> (2 * (group / 4))) & 3;
      const float dl = d * static_cast<float>((low | (high << 4)) - 32);
      for (int k = 0; k < 16; ++k) {
        const int i = 16 * group + k;
        const int q = (byte(qs + i / 128 * 32 + i % 32) >> (2 * (i % 128 / 32))) & 3;
        const bool set = (byte(p + i % 32) >> (i / 32)) & 1;
        out[i] = dl * static_cast<float>(q - (set ? 0 : 4));
      }
    }
  }
}

// Scale and minimum (6 bits each) of group j of eight, packed in 12 bytes:
// get_scale_min_k4 of ggml-quants.c.
struct ScaleMin {
  int scale;
  int min;
};
ScaleMin scale_min(int j, const std::byte* s) {
  if (j < 4) return {byte(s + j) & 63, byte(s + j + 4) & 63};
  return {(byte(s + j + 4) & 15) | ((byte(s + j - 4) >> 6) << 4),
          (byte(s + j + 4) >> 4) | ((byte(s + j) >> 6) << 4)};
}

// d, dmin, scales[12], qs[128]: 64 elements share 32 bytes, low nibbles first
void decode_q4_k(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 144, out += kSuper) {
    const float d = half(p), dmin = half(p + 2);
    for (int group = 0; group < 8; ++group) {
      const ScaleMin s = scale_min(group, p + 4);
      const float dl = d * static_cast<float>(s.scale), ml = dmin * static_cast<float>(s.min);
      const std::byte* q = p + 16 + group / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        const int value = (byte(q + i) >> (4 * (group % 2))) & 15;
        out[32 * group + i] = dl * static_cast<float>(value) - ml;
      }
    }
  }
}

// d, dmin, scales[12], qh[32] (bit `group` of byte i), qs[128] as in Q4_K
void decode_q5_k(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 176, out += kSuper) {
    const float d = half(p), dmin = half(p + 2);
    for (int group = 0; group < 8; ++group) {
      const ScaleMin s = scale_min(group, p + 4);
      const float dl = d * static_cast<float>(s.scale), ml = dmin * static_cast<float>(s.min);
      const std::byte* high = p + 16;
      const std::byte* q = p + 48 + group / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        const int value =
            ((byte(q + i) >> (4 * (group % 2))) & 15) | (((byte(high + i) >> group) & 1) << 4);
        out[32 * group + i] = dl * static_cast<float>(value) - ml;
      }
    }
  }
}

// ql[128] (low four bits), qh[64] (high two), scales[16] i8, d: halves of 128 elements, quarters of
// 32 in each
void decode_q6_k(const std::byte* p, int64_t blocks, float* out) {
  for (; blocks-- > 0; p += 210, out += kSuper) {
    const float d = half(p + 208);
    for (int part = 0; part < 8; ++part) {  // 32 elements each, four parts a half
      const int quarter = part % 4;
      const std::byte* low = p + part / 4 * 64 + quarter % 2 * 32;
      const std::byte* high = p + 128 + part / 4 * 32;
      const int low_shift = quarter / 2 * 4, high_shift = 2 * quarter;
      for (int sixteen = 0; sixteen < 32; sixteen += 16) {
        const auto scale =
            static_cast<float>(static_cast<int8_t>(p[192 + 2 * part + sixteen / 16]));
        const float dl = d * scale;
        for (int i = sixteen; i < sixteen + 16; ++i) {
          const int l = (byte(low + i) >> low_shift) & 15;
          const int h = (byte(high + i) >> high_shift) & 3;
          out[32 * part + i] = dl * static_cast<float>((l | (h << 4)) - 32);
        }
      }
    }
  }
}

}  // namespace

BlockDecoder find_k_quant_decoder(GgmlType type) {
  switch (type) {
    case GgmlType::kQ2_K:
      return decode_q2_k;
    case GgmlType::kQ3_K:
      return decode_q3_k;
    case GgmlType::kQ4_K:
      return decode_q4_k;
    case GgmlType::kQ5_K:
      return decode_q5_k;
    case GgmlType::kQ6_K:
      return decode_q6_k;
    default:
      return nullptr;
  }
}

}  // namespace balora::io
