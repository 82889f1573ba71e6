// Values of weights in blocks of codes (balora_encoding of tensor/view.h): the formulas of the
// block types of GGUF files, of bitsandbytes' 4-bit codes and of its int8 rows, for every device.
// All arithmetic is f32 in the order of the formats' references (d*q, d*q+m, d*sc*q - dmin*m), each
// operation rounded once, so that every device has the reference's bits.
//
// A block type has kBlock elements in kBytes bytes and gives them by groups of 16, in which scales,
// shifts and the places of the codes are the same: group(block, g) finds these, and value(group, k,
// code) is element 16 g + k. Layouts: ggml-common.h, ggml-quants.c. `code` is the table of the
// encoding, which only the types IQ4 read.
#pragma once
#include <cstdint>

#include "kernels/shared/host_device.h"
#include "tensor/dtype.h"
#include "tensor/view.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace balora::blocks {

// The types of GGUF files whose blocks have more than one element.
#define BALORA_BLOCK_TYPES(TYPE) \
  TYPE(Q4_0)                     \
  TYPE(Q4_1)                     \
  TYPE(Q5_0)                     \
  TYPE(Q5_1)                     \
  TYPE(Q8_0)                     \
  TYPE(Q2_K)                     \
  TYPE(Q3_K)                     \
  TYPE(Q4_K)                     \
  TYPE(Q5_K)                     \
  TYPE(Q6_K)                     \
  TYPE(IQ4_NL)                   \
  TYPE(IQ4_XS)

// kvalues_iq4nl of ggml-common.h: the table of the types IQ4.
constexpr float kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

// a b, rounded also where a compiler would contract it with a sum.
BALORA_HOST_DEVICE float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#elif defined(__FP_FAST_FMAF)
  volatile float rounded = a * b;
  return rounded;
#else
  return a * b;
#endif
}
BALORA_HOST_DEVICE float product(float a, int b) {
  return product(a, static_cast<float>(b));
}

// Two bytes as f16; they need no alignment.
BALORA_HOST_DEVICE float half_at(const uint8_t* p) {
  const auto bits = static_cast<uint16_t>(p[0] | p[1] << 8);
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(bits));
#else
  return to_float(f16{bits});
#endif
}

// The f32 factors that begin at a place of the bytes, a multiple of 4.
BALORA_HOST_DEVICE float factor_at(const uint8_t* data, int64_t place, int64_t i) {
  return static_cast<const float*>(static_cast<const void*>(data + place))[i];
}

// 16 elements of a block: their factor, what is added to the product, where their codes begin and
// how far these lie from a byte's lowest bit. What of a code lies elsewhere is in bit `high_shift`
// of bytes from `high` on, or in a bit of `fifth` an element.
struct Group {
  float d, m;
  const uint8_t* q;
  int shift;
  const uint8_t* high;
  int high_shift, fifth;

  BALORA_HOST_DEVICE int code(int k, int mask) const { return q[k] >> shift & mask; }
  BALORA_HOST_DEVICE int high_bits(int k, int mask) const { return high[k] >> high_shift & mask; }
  BALORA_HOST_DEVICE int five_bits(int k) const { return code(k, 15) | (fifth >> k & 1) << 4; }
};

// d f16, 32 x i8
struct Q8_0 {
  static constexpr int kBlock = 32, kBytes = 34;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    return {.d = half_at(p), .q = p + 2 + 16 * g};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, static_cast<int8_t>(s.q[k]));
  }
};

// d f16, 16 bytes: element i in the low nibble of byte i, element 16 + i in the high one
struct Q4_0 {
  static constexpr int kBlock = 32, kBytes = 18;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    return {.d = half_at(p), .q = p + 2, .shift = 4 * g};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, s.code(k, 15) - 8);
  }
};

// d f16, m f16, nibbles
struct Q4_1 {
  static constexpr int kBlock = 32, kBytes = 20;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    return {.d = half_at(p), .m = half_at(p + 2), .q = p + 4, .shift = 4 * g};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, s.code(k, 15)) + s.m;
  }
};

// 16 fifth bits, of the four bytes that hold 32 of them.
BALORA_HOST_DEVICE int fifth_bits(const uint8_t* p, int g) {
  return p[2 * g] | p[2 * g + 1] << 8;
}

// d f16, 32 fifth bits, nibbles
struct Q5_0 {
  static constexpr int kBlock = 32, kBytes = 22;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    return {.d = half_at(p), .q = p + 6, .shift = 4 * g, .fifth = fifth_bits(p + 2, g)};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, s.five_bits(k) - 16);
  }
};

// d f16, m f16, 32 fifth bits, nibbles
struct Q5_1 {
  static constexpr int kBlock = 32, kBytes = 24;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    const int fifth = fifth_bits(p + 4, g);
    return {.d = half_at(p), .m = half_at(p + 2), .q = p + 8, .shift = 4 * g, .fifth = fifth};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, s.five_bits(k)) + s.m;
  }
};

// d f16, nibbles that stand for values of the table
struct IQ4_NL {
  static constexpr int kBlock = 32, kBytes = 18;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) { return Q4_0::group(p, g); }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float* code) {
    return product(s.d, code[s.code(k, 15)]);
  }
};

// d f16, scales_h u16 (2 bits a scale), scales_l (4 bits a scale), 8 times 32 elements in nibbles
struct IQ4_XS : IQ4_NL {
  static constexpr int kBlock = 256, kBytes = 136;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    const int pair = g / 2;
    const int low = (p[4 + pair / 2] >> (4 * (pair % 2))) & 15;
    const int high = ((p[2] | p[3] << 8) >> (2 * pair)) & 3;
    return {.d = product(half_at(p), (low | high << 4) - 32),
            .q = p + 8 + 16 * pair,
            .shift = 4 * (g % 2)};
  }
};

// The K-quants: 256 elements with quantised scales. 16 elements have d times a scale, and of some
// types dmin times a minimum, which is taken off.

// scales[16] (low nibble scale, high nibble minimum), qs[64] (2 bits), d, dmin
struct Q2_K {
  static constexpr int kBlock = 256, kBytes = 84;
  // 128 elements share 32 bytes, two bits each.
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    return {.d = product(half_at(p + 80), p[g] & 15),
            .m = -product(half_at(p + 82), p[g] >> 4),
            .q = p + 16 + g / 8 * 32 + g % 2 * 16,
            .shift = 2 * (g % 8 / 2)};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, s.code(k, 3)) + s.m;
  }
};

// hmask[32] (third bit, inverted), qs[64] (2 bits), scales[12] (16 x 6 bits), d
struct Q3_K {
  static constexpr int kBlock = 256, kBytes = 110;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    // Low four bits: nibbles of bytes 0-7; high two: bytes 8-11, a pair of bits for each quarter.
    const uint8_t* packed = p + 96;
    const int low = (packed[g % 8] >> (4 * (g / 8))) & 15;
    const int high = (packed[8 + g % 4] >> (2 * (g / 4))) & 3;
    return {.d = product(half_at(p + 108), (low | high << 4) - 32),
            .q = p + 32 + g / 8 * 32 + g % 2 * 16,
            .shift = 2 * (g % 8 / 2),
            .high = p + g % 2 * 16,
            .high_shift = g / 2};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, (s.code(k, 3) | s.high_bits(k, 1) << 2) - 4);
  }
};

// d times the scale, dmin times the minimum (6 bits each) of part j of eight, of d, dmin and 12
// bytes: ggml-quants.c's get_scale_min_k4.
BALORA_HOST_DEVICE Group scaled_part(const uint8_t* p, int j) {
  const uint8_t* s = p + 4;
  const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
  const int least = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
  return {.d = product(half_at(p), scale), .m = -product(half_at(p + 2), least)};
}

// d, dmin, scales[12], qs[128]: 64 elements share 32 bytes, low nibbles first
struct Q4_K {
  static constexpr int kBlock = 256, kBytes = 144;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    Group s = scaled_part(p, g / 2);
    s.q = p + 16 + g / 4 * 32 + g % 2 * 16, s.shift = 4 * (g / 2 % 2);
    return s;
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float* code) {
    return Q4_1::value(s, k, code);
  }
};

// d, dmin, scales[12], qh[32] (bit j of a byte belongs to part j of eight), qs[128] as in Q4_K
struct Q5_K {
  static constexpr int kBlock = 256, kBytes = 176;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    Group s = Q4_K::group(p, g);
    s.q += 32, s.high = p + 16 + g % 2 * 16, s.high_shift = g / 2;
    return s;
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, s.code(k, 15) | s.high_bits(k, 1) << 4) + s.m;
  }
};

// ql[128] (low four bits), qh[64] (high two), scales[16] i8, d: halves of 128 elements, quarters of
// 32 in each
struct Q6_K {
  static constexpr int kBlock = 256, kBytes = 210;
  static BALORA_HOST_DEVICE Group group(const uint8_t* p, int g) {
    const int part = g / 2, quarter = part % 4;
    return {.d = product(half_at(p + 208), static_cast<int8_t>(p[192 + g])),
            .q = p + part / 4 * 64 + quarter % 2 * 32 + g % 2 * 16,
            .shift = quarter / 2 * 4,
            .high = p + 128 + part / 4 * 32 + g % 2 * 16,
            .high_shift = 2 * quarter};
  }
  static BALORA_HOST_DEVICE float value(const Group& s, int k, const float*) {
    return product(s.d, (s.code(k, 15) | s.high_bits(k, 3) << 4) - 32);
  }
};

// ---- bitsandbytes -------------------------------------------------------------------------------

// The code of element i of 4-bit codes: byte j holds 2j in its high nibble.
BALORA_HOST_DEVICE int four_bit_code(const uint8_t* data, int64_t i) {
  return i % 2 == 0 ? data[i / 2] >> 4 : data[i / 2] & 15;
}

// The factor of a block of 4-bit codes. `nested_index` is index / nested_block, and not read where
// the factors stand as f32.
BALORA_HOST_DEVICE float four_bit_scale(const balora_encoding& encoding, const uint8_t* data,
                                        int64_t index, int64_t nested_index) {
  if (!encoding.nested_block) return factor_at(data, encoding.scales_at, index);
  return product(factor_at(data, encoding.map_at, data[encoding.scales_at + index]),
                 factor_at(data, encoding.nested_at, nested_index)) +
         encoding.offset;
}

BALORA_HOST_DEVICE float int8_value(uint8_t byte, float scale) {
  return product(scale, static_cast<int8_t>(byte)) / 127.0f;
}

}  // namespace balora::blocks
