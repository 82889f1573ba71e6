// One block of a product in int8 (int8.h) on each kind of instruction: VPDPBUSD of AVX512-VNNI and
// of AVX-VNNI, and plain loops, which define what the others compute to the bit: the sums are whole
// numbers modulo 2^32, and what follows rounds each value alike. TDPBUSD of AMX is left out: a step
// in int8 took longer with it than one in bf16.
#pragma once
#include <cstdint>

#include "kernels/shared/int8_rows.h"

namespace balora {

enum class Int8Core { kPlain, kAvxVnni, kAvx512Vnni };

// A block has kInt8Rows rows, a step kInt8K of k.
constexpr int64_t kInt8Columns = 32;  // columns of a panel of B: two tiles of 16
constexpr int64_t kInt8StepBytes = kInt8K * kInt8Columns;

// Rows of A, each value plus 128, times a packed panel of B: for each 64 of k two tiles of 16
// columns, in a tile 16 rows of words, in a word four of k of one column.
struct Int8Block {
  const uint8_t* a;  // kInt8Rows rows may be read
  int64_t lda;
  const int8_t* b;
  int64_t steps;
  const int32_t* offset;   // (32) -128 times the sum of each column of B
  const float* row_scale;  // (32)
  const float* scale;      // (32) of the columns; null: 1
};

// C (rows,32) = [C +] row_scale * scale * (the sum over k of (a - 128) b), the sum being exact
// modulo 2^32 and the addition to C fused. C has kInt8Rows rows, ldc apart; what it gets in those
// past `rows` means nothing.
using Int8Multiply = void (*)(const Int8Block& block, int64_t rows, float* c, int64_t ldc,
                              bool accumulate);
Int8Multiply int8_multiply(Int8Core core);

// Whether this process may use it.
bool int8_core_runs(Int8Core core);
// The best of those.
Int8Core int8_core();
// "plain", "avx_vnni", "avx512_vnni"
const char* int8_core_name();

}  // namespace balora
