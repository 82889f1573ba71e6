#include "kernels/cpu/linalg/float_block.h"
#include "kernels/cpu/runtime/levels.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/runtime/inline.h"
#include "kernels/shared/philox.h"

namespace balora {
namespace {

typedef double Doubles __attribute__((vector_size(64), may_alias));

BALORA_INLINE void fill_range_loop(float* values, int64_t blocks, uint64_t seed) {
  for (int64_t i = 0; i < blocks; ++i) {
    const PhiloxBlock bits = philox(seed, static_cast<uint64_t>(i));
    for (int j = 0; j < 4; ++j) {
      values[4 * i + j] =
          static_cast<float>(static_cast<int32_t>(bits[static_cast<size_t>(j)]) >> 7) * 0x1p-24f;
    }
  }
}
void fill_range(float* values, int64_t blocks, uint64_t seed) {
  at_level<&fill_range_loop>(values, blocks, seed);
}

BALORA_INLINE void widen_loop(const float* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<double>(from[i]);
}
void widen(const float* from, int64_t count, double* to) {
  at_level<&widen_loop>(from, count, to);
}

BALORA_INLINE void narrow_loop(const double* from, double scale, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i] * scale);
}

// Into 32 sums, so that none waits for the one before.
template <typename T>
BALORA_INLINE void add_squares(const T* values, int64_t count, double* sums) {
  for (int64_t i = 0; i < count; i += 32) {
    const int64_t rest = std::min<int64_t>(32, count - i);
    for (int64_t j = 0; j < rest; ++j) {
      const auto value = static_cast<double>(values[i + j]);
      sums[j] += value * value;
    }
  }
}

// s (8,16) = columns row..row+7 of x (rows,cols) against columns col..col+15 of y.
BALORA_INLINE void product_tile_loop(const double* x, const double* y, int64_t rows, int64_t cols,
                                     int64_t row, int64_t col, double* s) {
  Doubles sum[8][2] = {};
  for (int64_t k = 0; k < rows; ++k) {
    const double *left = x + k * cols + row, *right = y + k * cols + col;
    const Doubles first = *reinterpret_cast<const Doubles*>(right);
    const Doubles second = *reinterpret_cast<const Doubles*>(right + 8);
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      sum[r][0] += left[r] * first;
      sum[r][1] += left[r] * second;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    *reinterpret_cast<Doubles*>(s + r * 16) = sum[r][0];
    *reinterpret_cast<Doubles*>(s + r * 16 + 8) = sum[r][1];
  }
}
void product_tile(const double* x, const double* y, int64_t rows, int64_t cols, int64_t row,
                  int64_t col, double* s) {
  at_level<&product_tile_loop>(x, y, rows, cols, row, col, s);
}

BALORA_INLINE void add_products_loop(const float* q, const float* y, int64_t rows, int64_t cols,
                                     float* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) sums[j] += q[i * cols + j] * y[i * cols + j];
  }
}
void add_products(const float* q, const float* y, int64_t rows, int64_t cols, float* sums) {
  at_level<&add_products_loop>(q, y, rows, cols, sums);
}

BALORA_INLINE void first_step_loop(float* y, const float* x, int64_t count, float shift,
                                   float scale) {
  for (int64_t i = 0; i < count; ++i) y[i] = scale * (y[i] - shift * x[i]);
}
void first_step(float* y, const float* x, int64_t count, float shift, float scale) {
  at_level<&first_step_loop>(y, x, count, shift, scale);
}

BALORA_INLINE void later_step_loop(float* y, const float* x, const float* before, int64_t count,
                                   float shift, float scale) {
  for (int64_t i = 0; i < count; ++i) y[i] = scale * (y[i] - shift * x[i]) - before[i];
}
void later_step(float* y, const float* x, const float* before, int64_t count, float shift,
                float scale) {
  at_level<&later_step_loop>(y, x, before, count, shift, scale);
}

}  // namespace

template <typename T>
double squared_norm(const T* values, int64_t count) {
  double sums[32] = {}, sum = 0;
  at_level<&add_squares<T>>(values, count, static_cast<double*>(sums));
  for (const double part : sums) sum += part;
  return sum;
}
template double squared_norm(const float* values, int64_t count);
template double squared_norm(const double* values, int64_t count);

void narrow(const double* from, int64_t count, float* to, double scale) {
  at_level<&narrow_loop>(from, scale, count, to);
}

void fill_uniform(const FloatBlock& block, int64_t rows, uint64_t seed) {
  fill_range(block.values, rows * block.cols / 4, seed);
  std::fill(block.values + rows * block.cols, block.values + block.size(), 0.0f);
}

namespace {

// X^T Y from its lower triangle, x and y (rows,cols).
Matrix mirrored_products(const double* x, const double* y, int64_t rows, int64_t cols) {
  Matrix products(cols, cols);
  for (int64_t i = 0; i < cols; i += 8) {
    for (int64_t j = 0; j <= i; j += 16) {
      alignas(64) double tile[8 * 16];
      product_tile(x, y, rows, cols, i, j, tile);
      for (int64_t r = 0; r < 8; ++r) {
        for (int64_t c = 0; c < 16 && j + c <= i + r; ++c) {
          products(i + r, j + c) = products(j + c, i + r) = tile[r * 16 + c];
        }
      }
    }
  }
  return products;
}

}  // namespace

Matrix block_gram(const FloatBlock& y, double* wide) {
  widen(y.values, y.size(), wide);
  return mirrored_products(wide, wide, y.rows, y.cols);
}

Matrix symmetric_products(const FloatBlock& x, const FloatBlock& y, double* wide) {
  double* other = wide + x.size();
  widen(x.values, x.size(), wide);
  widen(y.values, y.size(), other);
  return mirrored_products(wide, other, x.rows, x.cols);
}

void block_times(const FloatBlock& y, const Matrix& weights, float* packed_weights,
                 const FloatBlock& out) {
  narrow(weights.values.data(), weights.rows * weights.cols, packed_weights);
  tile_gemm({y.rows, weights.cols, y.cols}, y.values, y.cols, packed_weights, out.values, out.cols,
            false);
}

Quotients rayleigh_quotients(const FloatBlock& q, const FloatBlock& y) {
  std::vector<float> sums(static_cast<size_t>(q.cols), 0.0f);
  add_products(q.values, y.values, q.rows, q.cols, sums.data());
  const auto [least, most] = std::minmax_element(sums.begin(), sums.end());
  return {*least, *most};
}

void chebyshev_step(const FloatBlock& y, const FloatBlock& x, float shift, float scale,
                    const FloatBlock* before) {
  if (before) {
    later_step(y.values, x.values, before->values, y.size(), shift, scale);
  } else {
    first_step(y.values, x.values, y.size(), shift, scale);
  }
}

}  // namespace balora
