// Products with frozen weights in int8:
//   y = s_x s_w q_x q_w^T,
// q_x with a scale for each row of x, q_w with one for each output channel, the sum exact in int32.
// A vector v is quantised as q = v * (127 / max|v|), rounded half to even, and s = max|v| / 127; a
// vector of zeros is s = 0, q = 0, and so is one whose largest value is below 2^-120. One that is
// not finite has s = NaN, which makes its products NaN.
//
// Under a rotation R, blocks of 64 inputs (32 where 64 does not divide their number, none where 32
// does not) are multiplied by the Hadamard matrix in Sylvester's order over the root of its size,
// symmetric and its own inverse: x R and W R are quantised in the place of x and W, which spreads
// outliers (QuaRot, arXiv 2404.00456). The gradient of x uses the same copy of W:
//   dx = (s_g q_g q_w) R, q_g and s_g from the rows of dy * s_w.
#pragma once
#include <cstdint>

#include "kernels/cpu/products/int8_block.h"
#include "kernels/kernel_table.h"
#include "platform/platform.h"

namespace balora {

// The right side of a product, B (k,n): element (i,j) at q[i * k_stride + j * n_stride], one of the
// strides being 1.
struct Int8Matrix {
  const int8_t* q = nullptr;
  int64_t k = 0, n = 0, k_stride = 0, n_stride = 0;
  const int32_t* offset = nullptr;  // of the columns, as Int8Block has it, up to whole panels
  const float* scale = nullptr;     // likewise; null: 1
  int64_t rotation = 0;             // 32 or 64: blocks of columns that R is applied to; 0: none

  // Panels that are computed together.
  int64_t panels_at_once() const { return rotation > kInt8Columns ? rotation / kInt8Columns : 1; }
  int64_t steps() const { return (k + kInt8K - 1) / kInt8K; }
};

// A frozen weight (O,I) in int8, the one copy for both directions.
class Int8Weight {
 public:
  // The copy, made at its first use and kept with the weight; null for a weight that is not frozen
  // or has no elements. Values of any float type but f64, or in blocks, which are decoded.
  static const Int8Weight* of(Context* ctx, const View& weight, bool rotated);

  Int8Matrix forward() const;   // W^T, of x R
  Int8Matrix backward() const;  // W, of dy * scale()
  const float* scale() const { return scale_; }
  int64_t rotation() const { return rotation_; }

 private:
  struct Copies;

  Int8Weight(Context* ctx, const View& weight, bool rotated);
  void quantise(Context* ctx, const View& weight);
  void sum_columns(Context* ctx);

  int64_t outs_, ins_, rotation_, bytes_;
  platform::AlignedMemory memory_;
  int8_t* q_;
  float* scale_;                                // (O)
  int32_t *forward_offset_, *backward_offset_;  // (O), (I)
};

// The copy for products as BALORA_INT8_* says; null: not in int8.
inline const Int8Weight* int8_copy(Context* ctx, const View& weight, int32_t int8) {
  if (int8 == BALORA_INT8_OFF) return nullptr;
  return Int8Weight::of(ctx, weight, int8 == BALORA_INT8_ROTATED);
}

// The left side, quantised by rows: codes plus 128, those of zeros up to a whole step, and as many
// rows as make whole blocks.
struct Int8Rows {
  const uint8_t* q = nullptr;
  int64_t ld = 0;
  const float* scale = nullptr;

  // Those from `first` on, a multiple of kInt8Rows.
  Int8Rows from(int64_t first) const { return {q + first * ld, ld, scale + first}; }
};

// Rows of x (m,k), contiguous and of any float type but f64, multiplied by the columns' scales
// (null: 1) and rotated. In the kernel's workspace.
Int8Rows quantise_rows(Context* ctx, const void* x, int32_t dtype, int64_t m, int64_t k,
                       const float* scale, int64_t rotation);
// The same into memory for int8_padded_rows(m) rows of int8_padded_columns(k) codes, with a scale
// for each.
void quantise_rows_to(Context* ctx, const void* x, int32_t dtype, int64_t m, int64_t k,
                      const float* scale, int64_t rotation, uint8_t* codes, float* scales);
// The values of codes of x (m,k), contiguous, rotated back.
void dequantise_rows(Context* ctx, const Int8Rows& rows, int64_t m, int64_t k, int64_t rotation,
                     void* x, int32_t dtype);

// Packs panels [begin, end) of B, each of steps() steps.
void pack_int8_panels(const Int8Matrix& b, int64_t begin, int64_t end, int8_t* to);

// v R for `count` values, a multiple of the rotation.
void rotate_blocks(float* v, int64_t count, int64_t rotation);

// C (m,n) = [C +] A B, rotated back where B says so, in f32.
void int8_product(Context* ctx, int64_t m, const Int8Rows& a, const Int8Matrix& b, float* c,
                  int64_t ldc, bool accumulate);

}  // namespace balora
