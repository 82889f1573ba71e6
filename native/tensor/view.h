// The plain C description of a tensor that kernels see. It crosses the device plug-in boundary, so
// it holds no C++ type and never changes its layout without a new ABI number
// (kernels/kernel_table.h).
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BALORA_MAX_DIMS 6

typedef enum balora_dtype {
  BALORA_F32 = 0,
  BALORA_BF16 = 1,
  BALORA_F16 = 2,
  BALORA_F64 = 3,
  BALORA_I32 = 4,
  BALORA_I64 = 5,
  BALORA_U8 = 6
} balora_dtype;

// Data a device derived from a tensor (a packed layout of a weight): filled by the first kernel
// that wants it, reused by the next, freed with the tensor's storage. The engine thread alone
// touches it.
typedef struct balora_slot {
  void* data;
  void (*destroy)(void* data);
  int64_t bytes;  // what the kernel accounted for it (balora_context.account); taken off with it
} balora_slot;

// The forms of blocks of codes. Those of GGUF files have the numbers that their types have there.
typedef enum balora_block_format {
  BALORA_BLOCKS_F32 = 0,
  BALORA_BLOCKS_F16 = 1,
  BALORA_BLOCKS_Q4_0 = 2,
  BALORA_BLOCKS_Q4_1 = 3,
  BALORA_BLOCKS_Q5_0 = 6,
  BALORA_BLOCKS_Q5_1 = 7,
  BALORA_BLOCKS_Q8_0 = 8,
  BALORA_BLOCKS_Q2_K = 10,
  BALORA_BLOCKS_Q3_K = 11,
  BALORA_BLOCKS_Q4_K = 12,
  BALORA_BLOCKS_Q5_K = 13,
  BALORA_BLOCKS_Q6_K = 14,
  BALORA_BLOCKS_IQ4_NL = 20,
  BALORA_BLOCKS_IQ4_XS = 23,
  BALORA_BLOCKS_BF16 = 30,
  BALORA_BLOCKS_FOUR_BIT = 256,  // bitsandbytes' NF4 and FP4
  BALORA_BLOCKS_INT8 = 257       // and its rows of int8
} balora_block_format;

// How the values of a weight that stands in blocks of codes are found in its bytes: as a function
// for those that read them on the host, and by format and places for devices with code of their
// own (kernels/shared/blocks.h has the formulas).
typedef struct balora_encoding balora_encoding;
struct balora_encoding {
  const char* name;  // "NF4", "Q4_1"
  int64_t block;     // elements that share their scale, one after the other
  // Writes the values [first, first + count) of the row-major tensor whose bytes begin at `data`.
  void (*decode)(const balora_encoding* encoding, const void* data, int64_t first, int64_t count,
                 float* values);
  int32_t format;  // balora_block_format
  // Where the f32 factors begin: of rows (int8), or of blocks (4 bits); there with a nested_block
  // these are u8 that stand for map[code] * nested[block / nested_block] + offset.
  int64_t scales_at;
  int64_t nested_block;  // 0: not nested
  int64_t nested_at, map_at;
  float offset;
  float code[16];  // values of 4-bit codes, where the format leaves them to a table
};

#define BALORA_SLOTS \
  4  // one per layout a device keeps of a frozen tensor; the meaning of each is the device's

typedef struct balora_view {
  void* data;                       // first element of the view; null only for an empty view
  int64_t shape[BALORA_MAX_DIMS];   // first ndim entries are valid
  int64_t stride[BALORA_MAX_DIMS];  // in elements; 0 repeats an element (broadcast)
  int32_t ndim;
  int32_t dtype;       // balora_dtype
  balora_slot* slots;  // BALORA_SLOTS entries for a frozen tensor, else null
  // One entry for what is derived from the values that the tensor has at a version, frozen or not:
  // while the version is the same, so are the values. Null for a view that does not begin where
  // its storage does, and for all operands of an op that reads offloaded memory.
  balora_slot* versioned;
  int64_t version;
  // Null, or how the values are found in the bytes at `data`: dtype is then the type that they are
  // computed with, the tensor is whole (of a matrix of several only `decode` knows where it
  // begins), and only kernels that say so take it.
  const balora_encoding* encoding;
} balora_view;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using View = balora_view;

inline int64_t view_numel(const View& v) {
  int64_t n = 1;
  for (int32_t i = 0; i < v.ndim; ++i) n *= v.shape[i];
  return n;
}

inline bool view_contiguous(const View& v) {
  if (view_numel(v) == 0) return true;
  int64_t expected = 1;
  for (int32_t i = v.ndim - 1; i >= 0; --i) {
    if (v.shape[i] != 1 && v.stride[i] != expected) return false;
    expected *= v.shape[i];
  }
  return true;
}
}  // namespace balora
#endif
