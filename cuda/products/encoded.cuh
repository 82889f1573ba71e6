// Values of weights in blocks (balora_encoding of tensor/view.h) on the device, decoded by the
// formulas of kernels/shared/blocks.h: by a product's kernel as it loads them, or a panel of a
// weight into scratch. docs/decisions/weights-in-blocks.md has the choice between the two.
//
// Eight neighbours in a row are decoded at a time, which are half of a group of 16 and one 16-byte
// access of bf16: their scale is read once, and their codes are 2 to 8 bytes. Where they do not
// begin at a multiple of eight (4-bit codes and int8 rows of odd widths), each is decoded alone.
#pragma once
#include "kernels/shared/blocks.h"
#include "kernels/shared/rows.h"
#include "runtime/common.cuh"

namespace balora::cuda {

// A weight in blocks as kernels get it.
struct Encoded {
  const uint8_t* data;
  int64_t columns;
  int32_t dtype;                      // to which values are rounded
  int32_t block_shift, nested_shift;  // log2 of the blocks' extents; -1: no power of two
  bool by_eights;                     // eight that begin at a multiple of eight share their scale
  balora_encoding how;
};
Encoded encoded_of(const View& view);

constexpr int kEight = 8;

__device__ inline int64_t quotient(int64_t i, int64_t by, int32_t shift) {
  return shift >= 0 ? i >> shift : i / by;
}

// The factor of element i of 4-bit codes.
__device__ inline float four_bit_scale_of(const Encoded& w, int64_t i) {
  const int64_t block = quotient(i, w.how.block, w.block_shift);
  const int64_t nested =
      w.how.nested_block ? quotient(block, w.how.nested_block, w.nested_shift) : 0;
  return blocks::four_bit_scale(w.how, w.data, block, nested);
}

template <typename Type>
__device__ inline float block_value(const Encoded& w, const float* code, int64_t i) {
  const auto at = static_cast<uint64_t>(i);
  const auto group = Type::group(w.data + at / Type::kBlock * Type::kBytes,
                                 static_cast<int>(at % Type::kBlock / 16));
  return Type::value(group, static_cast<int>(at % 16), code);
}

// Element i, of row `row`. `code` is how.code in memory that lanes may index.
__device__ inline float decode_one(const Encoded& w, const float* code, int64_t row, int64_t i) {
  switch (w.how.format) {
#define TYPE(name)           \
  case BALORA_BLOCKS_##name: \
    return block_value<blocks::name>(w, code, i);
    BALORA_BLOCK_TYPES(TYPE)
#undef TYPE
    case BALORA_BLOCKS_FOUR_BIT:
      return blocks::product(code[blocks::four_bit_code(w.data, i)], four_bit_scale_of(w, i));
    case BALORA_BLOCKS_INT8:
      return blocks::int8_value(w.data[i], blocks::factor_at(w.data, w.how.scales_at, row));
    case BALORA_BLOCKS_F16:
      return load(reinterpret_cast<const f16*>(w.data)[i]);
    case BALORA_BLOCKS_BF16:
      return load(reinterpret_cast<const bf16*>(w.data)[i]);
    default:
      return reinterpret_cast<const float*>(w.data)[i];
  }
}

template <typename Type>
__device__ inline void decode_half_group(const Encoded& w, const float* code, int64_t first,
                                         float (&out)[kEight]) {
  const auto at = static_cast<uint64_t>(first);
  const auto group = Type::group(w.data + at / Type::kBlock * Type::kBytes,
                                 static_cast<int>(at % Type::kBlock / 16));
  const int half = static_cast<int>(at % 16);
  BALORA_UNROLL
  for (int k = 0; k < kEight; ++k) out[k] = Type::value(group, half + k, code);
}

// Eight 4-bit codes as they are loaded, so that a kernel can have other work between that and what
// it makes of them.
struct EightCodes {
  uint32_t codes;
  float scale;
};

// The codes from element `first` on, a multiple of eight.
__device__ inline EightCodes load_codes(const Encoded& w, int64_t first) {
  return {*reinterpret_cast<const uint32_t*>(w.data + first / 2), four_bit_scale_of(w, first)};
}

__device__ inline void decode_codes(const EightCodes& eight, const float* code,
                                    float (&out)[kEight]) {
  BALORA_UNROLL
  for (int k = 0; k < kEight; k += 2) {
    out[k] = blocks::product(code[eight.codes >> (4 * k + 4) & 15], eight.scale);
    out[k + 1] = blocks::product(code[eight.codes >> (4 * k) & 15], eight.scale);
  }
}

__device__ inline void decode_bytes(const Encoded& w, int64_t row, int64_t first,
                                    float (&out)[kEight]) {
  const float scale = blocks::factor_at(w.data, w.how.scales_at, row);
  const auto bytes = *reinterpret_cast<const Pack<uint8_t, kEight>*>(w.data + first);
  BALORA_UNROLL
  for (int k = 0; k < kEight; ++k) out[k] = blocks::int8_value(bytes.at[k], scale);
}

// Whether the eight elements from `first` on are decoded together, of which `valid` are wanted.
__device__ inline bool is_eight(const Encoded& w, int64_t first, int valid) {
  return valid == kEight && w.by_eights && first % kEight == 0;
}

// The values of row `row` from `column` on; those from `valid` (0 to 8) on are zero and not read.
__device__ inline void decode_eight(const Encoded& w, const float* code, int64_t row,
                                    int64_t column, int valid, float (&out)[kEight]) {
  const int64_t first = row * w.columns + column;
  if (!is_eight(w, first, valid)) {
    BALORA_UNROLL
    for (int k = 0; k < kEight; ++k) out[k] = 0;
    for (int k = 0; k < valid; ++k) {
      const float value = decode_one(w, code, row, first + k);
      BALORA_UNROLL
      for (int j = 0; j < kEight; ++j) {
        if (j == k) out[j] = value;  // so that `out` stays in registers
      }
    }
    return;
  }
  switch (w.how.format) {
#define TYPE(name)           \
  case BALORA_BLOCKS_##name: \
    return decode_half_group<blocks::name>(w, code, first, out);
    BALORA_BLOCK_TYPES(TYPE)
#undef TYPE
    case BALORA_BLOCKS_FOUR_BIT:
      return decode_codes(load_codes(w, first), code, out);
    case BALORA_BLOCKS_INT8:
      return decode_bytes(w, row, first, out);
    default:
      BALORA_UNROLL
      for (int k = 0; k < kEight; ++k) out[k] = decode_one(w, code, row, first + k);
  }
}

// A value as a dense weight of the type would have it.
__device__ inline float rounded_to(int32_t dtype, float value) {
  if (dtype == BALORA_BF16) return load(store<bf16>(value));
  if (dtype == BALORA_F16) return load(store<f16>(value));
  return value;
}

// The columns [first, first + count) of a row by one warp, as T. `part` of `parts` warps that share
// them is this one's; `packed`: `to` and each eight of it may be written in accesses of 16 bytes.
template <typename T>
__device__ inline void decode_row(const Encoded& w, const float* code, int64_t row, int64_t first,
                                  int64_t count, T* to, bool packed, int64_t part, int64_t parts) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t at = (part * kWarp + lane) * kEight; at < count; at += parts * kWarp * kEight) {
    const int valid = count - at >= kEight ? kEight : static_cast<int>(count - at);
    float values[kEight];
    decode_eight(w, code, row, first + at, valid, values);
    T out[kEight];
    BALORA_UNROLL
    for (int k = 0; k < kEight; ++k) {
      out[k] = store<T>(static_cast<Acc<T>>(rounded_to(w.dtype, values[k])));
    }
    if (packed && valid == kEight) {
      constexpr int kPack = kPackOf<T>;
      BALORA_UNROLL
      for (int k = 0; k < kEight; k += kPack) {
        Pack<T, kPack> pack;
        BALORA_UNROLL
        for (int j = 0; j < kPack; ++j) pack.at[j] = out[k + j];
        *reinterpret_cast<Pack<T, kPack>*>(to + at + k) = pack;
      }
      continue;
    }
    BALORA_UNROLL
    for (int k = 0; k < kEight; ++k) {
      if (k < valid) to[at + k] = out[k];
    }
  }
}

// Whether rows of T at `to`, `stride` apart, may be written in accesses of 16 bytes.
template <typename T>
bool writes_packs(const void* to, int64_t stride) {
  return aligned16(to) && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

// The table of codes in shared memory; every thread of the block must call it.
__device__ inline void load_code(const Encoded& w, float* code) {
  if (threadIdx.x < 16) code[threadIdx.x] = w.how.code[threadIdx.x];
  __syncthreads();
}

// A rectangle of a weight.
struct PanelPlace {
  int64_t first_row, rows, first_column, columns;
};

// The values of a part of a weight in blocks, rounded to the weight's type, as the type of `to`.
void decode_panel(Context* ctx, const View& weight, const PanelPlace& place, const ResultRows& to);

// ---- Slices -------------------------------------------------------------------------------------

// The columns of equal slices of `count`, where a column takes `bytes` of panels: so many that the
// panels stay within 96 MiB, or BALORA_CUDA_PANEL_BYTES, and 256 at least. In 96 MiB the slices of
// a 7B model have some thousand columns, so that a product's tiles fill the device.
int64_t slice_of(Context* ctx, int64_t count, int64_t bytes);

// Scratch of an op for the panels of one product after the other.
class PanelScratch {
 public:
  explicit PanelScratch(Context* ctx) : ctx_(ctx) {}

  // So many bytes, which the product before may have had.
  void* at_least(int64_t bytes) {
    if (!data_ || bytes_ < bytes) data_ = workspace<char>(ctx_, bytes), bytes_ = bytes;
    return data_;
  }

 private:
  Context* ctx_;
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace balora::cuda
