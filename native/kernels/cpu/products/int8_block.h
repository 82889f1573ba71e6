// One block of a product in int8 (int8.h) on each kind of instruction: VPDPBUSD of AVX512-VNNI and
// of AVX-VNNI, and plain loops, which define what the others compute to the bit: the sums are whole
// numbers modulo 2^32, and what follows rounds each value alike. TDPBUSD of AMX is left out: a step
// in int8 took longer with it than one in bf16.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/cpu/runtime/implementation.h"
#include "kernels/shared/int8_rows.h"

namespace balora {

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

std::span<const Core<Int8Multiply>> int8_cores();
// The one that this process uses.
const Core<Int8Multiply>& int8_core();

namespace x86 {
void multiply_avx512_vnni(const Int8Block& block, int64_t rows, float* c, int64_t ldc,
                          bool accumulate);
void multiply_avx_vnni(const Int8Block& block, int64_t rows, float* c, int64_t ldc,
                       bool accumulate);
}  // namespace x86

}  // namespace balora
