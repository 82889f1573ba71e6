#include "kernels/cpu/linalg/float_block.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/shared/philox.h"

namespace balora {
namespace {

BALORA_INLINE void fill_range(float* values, int64_t blocks, uint64_t seed) {
  for (int64_t i = 0; i < blocks; ++i) {
    const PhiloxBlock bits = philox(seed, static_cast<uint64_t>(i));
    for (int j = 0; j < 4; ++j) {
      values[4 * i + j] =
          static_cast<float>(static_cast<int32_t>(bits[static_cast<size_t>(j)]) >> 7) * 0x1p-24f;
    }
  }
}
BALORA_INLINE void narrow_loop(const double* from, double scale, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i] * scale);
}

// Into 32 sums, so that none waits for the one before.
template <typename T>
BALORA_INLINE void add_squares(const T* values, int64_t count, double* sums) {
  const int64_t whole = count / 32 * 32;
  for (int64_t i = 0; i < whole; i += 32) {
    for (int64_t j = 0; j < 32; ++j) {
      const auto value = static_cast<double>(values[i + j]);
      sums[j] += value * value;
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    const auto value = static_cast<double>(values[i]);
    sums[i - whole] += value * value;
  }
}

BALORA_INLINE void add_products(const float* q, const float* y, int64_t rows, int64_t cols,
                                float* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) sums[j] += q[i * cols + j] * y[i * cols + j];
  }
}

BALORA_INLINE void step(float* y, const float* x, const float* before, int64_t count, float shift,
                        float scale) {
  if (before) {
    for (int64_t i = 0; i < count; ++i) y[i] = scale * (y[i] - shift * x[i]) - before[i];
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] = scale * (y[i] - shift * x[i]);
  }
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
  at_level<&fill_range>(block.values, rows * block.cols / 4, seed);
  std::fill(block.values + rows * block.cols, block.values + block.size(), 0.0f);
}

namespace {

// X^T Y from its lower triangle, x and y (rows,cols).
Matrix mirrored_products(const double* x, const double* y, int64_t rows, int64_t cols) {
  Matrix products(cols, cols);
  for (int64_t i = 0; i < cols; i += 8) {
    for (int64_t j = 0; j <= i; j += 16) {
      alignas(64) double tile[8 * 16];
      tile_gemm(TileOperands<double>{.shape = {8, 16, rows},
                                     .a = x + i,
                                     .lda = cols,
                                     .b = y + j,
                                     .ldb = cols,
                                     .c = tile,
                                     .ldc = 16,
                                     .accumulate = false,
                                     .left = TileLeft::kColumns});
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
  convert_row(y.values, wide, y.size());
  return mirrored_products(wide, wide, y.rows, y.cols);
}

Matrix symmetric_products(const FloatBlock& x, const FloatBlock& y, double* wide) {
  double* other = wide + x.size();
  convert_row(x.values, wide, x.size());
  convert_row(y.values, other, y.size());
  return mirrored_products(wide, other, x.rows, x.cols);
}

void block_times(const FloatBlock& y, const Matrix& weights, float* packed_weights,
                 const FloatBlock& out) {
  narrow(weights.values.data(), weights.rows * weights.cols, packed_weights);
  tile_gemm({y.rows, weights.cols, y.cols}, y.values, y.cols, packed_weights, out.values, out.cols,
            false);
}

std::vector<float> column_products(const FloatBlock& q, const FloatBlock& y) {
  std::vector<float> sums(static_cast<size_t>(q.cols), 0.0f);
  at_level<&add_products>(q.values, y.values, q.rows, q.cols, sums.data());
  return sums;
}

Quotients rayleigh_quotients(const FloatBlock& q, const FloatBlock& y) {
  const std::vector<float> sums = column_products(q, y);
  const auto [least, most] = std::minmax_element(sums.begin(), sums.end());
  return {*least, *most};
}

void chebyshev_step(const FloatBlock& y, const FloatBlock& x, float shift, float scale,
                    const FloatBlock* before) {
  at_level<&step>(y.values, x.values, before ? before->values : nullptr, y.size(), shift, scale);
}

}  // namespace balora
