// A^T A for the iterations of chebyshev_svd.h, as exactly as they need it: from A rounded to bf16
// where the CPU multiplies bf16 (AMX, AVX512-BF16), else in f32, and itself kept rounded so. A
// rounding of 2^-9 moves a subspace by second order in the energy it captures: 1e-6 of the rest,
// which the products with A itself then take away.
#pragma once
#include "kernels/cpu/linalg/float_block.h"
#include "kernels/cpu/products/product_f64.h"

namespace balora {

// W (M,N) row-major in any float dtype, read as A (m,n) = W or W^T with m >= n. Padded extents are
// multiples of 32.
struct WeightSource {
  const void* data;
  int32_t dtype;
  int64_t rows, cols;  // of W

  bool tall() const { return rows >= cols; }
  int64_t m() const { return tall() ? rows : cols; }
  int64_t n() const { return tall() ? cols : rows; }
  int64_t padded_m() const { return tile_padded(m()); }
  int64_t padded_n() const { return tile_padded(n()); }
};

class LowPrecisionGram {
 public:
  LowPrecisionGram(const WeightSource& w, int64_t block_cols, Arena& arena);
  void make(const Context* ctx);
  // Whether G is formed from A as it is: once refined, its products then are within f32's rounding
  // of their largest parts.
  bool exact() const { return !narrow_ || w_.dtype == BALORA_BF16; }
  // From here on G has 16 bits, for spectra so wide that the rounding of what belongs to the
  // largest eigenvalue would drown the wanted ones. False where there is nothing to add.
  bool refine(const Context* ctx);
  // y = G x, with x in 16 bits if fine, else in bf16's 8.
  void apply(const Context* ctx, const FloatBlock& x, const FloatBlock& y, bool fine) const;

 private:
  template <typename T>
  void make_in(const Context* ctx);
  template <typename T>
  void apply_in(const Context* ctx, const FloatBlock& x, const FloatBlock& y, bool fine) const;

  WeightSource w_;
  bool narrow_;              // bf16, else f32
  int64_t gram_ld_;          // an odd number of cache lines, or rows share cache sets
  uint32_t *left_, *right_;  // GramOperands
  float* sums_;              // A^T A, the lower triangle
  void* gram_;               // G
  void* rest_ = nullptr;     // what rounding G to bf16 left
  bool refined_ = false;
  void* packed_x_;  // and what rounding left of it
};

}  // namespace balora
