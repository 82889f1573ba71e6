// Blocks of a few dozen f32 columns, the iterates of chebyshev_svd.h: row-major, rows and columns
// padded with zeros to multiples of 32, so that tile_gemm takes them as they are.
#pragma once
#include <cstdint>

#include "kernels/cpu/linalg/dense.h"
#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/runtime/arena.h"

namespace balora {

// The sum of squares, in f64.
template <typename T>
double squared_norm(const T* values, int64_t count);

// to = from times scale
void narrow(const double* from, int64_t count, float* to, double scale = 1);

struct FloatBlock {
  int64_t rows = 0, cols = 0;
  float* values = nullptr;

  int64_t size() const { return rows * cols; }
};

inline FloatBlock take_block(Arena& arena, int64_t rows, int64_t cols) {
  return {rows, cols, arena.take<float>(rows * cols)};
}

// The first `rows` rows of the block become uniform in [-1, 1), from Philox blocks of the seed.
void fill_uniform(const FloatBlock& block, int64_t rows, uint64_t seed);

// Y^T Y, summed in f64. `wide` has room for the block's elements.
Matrix block_gram(const FloatBlock& y, double* wide);

// X^T Y where it is known to be symmetric, summed in f64. `wide` has room for both.
Matrix symmetric_products(const FloatBlock& x, const FloatBlock& y, double* wide);

// out = y weights, out and y of the same rows.
void block_times(const FloatBlock& y, const Matrix& weights, float* packed_weights,
                 const FloatBlock& out);

// q_j . y_j of each column
std::vector<float> column_products(const FloatBlock& q, const FloatBlock& y);

// The smallest of the columns' Rayleigh quotients q_j . y_j, and the largest.
struct Quotients {
  double smallest, largest;
  bool within(double ratio) const { return smallest > 0 && largest <= ratio * smallest; }
};
Quotients rayleigh_quotients(const FloatBlock& q, const FloatBlock& y);

// y = scale (y - shift x) - before; without `before`, minus zero.
void chebyshev_step(const FloatBlock& y, const FloatBlock& x, float shift, float scale,
                    const FloatBlock* before = nullptr);

}  // namespace balora
