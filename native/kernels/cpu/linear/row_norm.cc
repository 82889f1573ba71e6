// The norm of each row of W + sum over parts of scale B A (DoRA's ||W + s B A||), a few rows and a
// block of columns at a time: the sum itself is never whole in memory. Squares are added in f64.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/low_rank.h"

namespace balora {
namespace {

constexpr int64_t kColumnBlock = 512;  // columns at a time: the block of A stays in the cache
constexpr int64_t kRows = 8;           // rows that share it

template <typename T>
BALORA_INLINE void widen_range(const T* x, Acc<T>* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = load(x[i]);
}

// y += sum over k of b[k] * a[k, :]; four rows of A at a time keep y in a register.
template <typename A>
BALORA_INLINE void add_rows_range(const A* a, int64_t stride, const A* b, int64_t rank, A* y,
                                  int64_t n) {
  int64_t k = 0;
  for (; k + 4 <= rank; k += 4) {
    const A *a0 = a + k * stride, *a1 = a0 + stride, *a2 = a1 + stride, *a3 = a2 + stride;
    const A b0 = b[k], b1 = b[k + 1], b2 = b[k + 2], b3 = b[k + 3];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] += b0 * a0[i] + b1 * a1[i] + b2 * a2[i] + b3 * a3[i];
  }
  for (; k < rank; ++k) {
    const A *a0 = a + k * stride, b0 = b[k];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] += b0 * a0[i];
  }
}

template <typename A>
BALORA_INLINE double squares_range(const A* y, int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += static_cast<double>(y[i]) * static_cast<double>(y[i]);
  return total;
}

template <typename T>
void widen(const T* x, Acc<T>* y, int64_t n) {
  at_level<&widen_range<T>>(x, y, n);
}
// Rows [first, last), at most kRows of them.
template <typename T>
void norms_of(const View& weight, const std::vector<LowRankProduct>& products, int64_t first,
              int64_t last, Acc<T>* norm) {
  using A = Acc<T>;
  const int64_t columns = weight.shape[1];
  A sum[kColumnBlock];
  std::vector<A> scaled;
  double squared[kRows] = {};
  for (int64_t c = 0; c < columns; c += kColumnBlock) {
    const int64_t n = std::min(kColumnBlock, columns - c);
    for (int64_t o = first; o < last; ++o) {
      if (weight.encoding) {
        decode_values(weight, o * columns + c, n, sum);
      } else {
        widen(data_of<T>(&weight) + o * columns + c, sum, n);
      }
      for (const LowRankProduct& product : products) {
        const int64_t rank = product.a->shape[0];
        const A* b = data_of<A>(product.b) + o * rank;
        scaled.assign(b, b + rank);
        for (A& value : scaled) value *= static_cast<A>(product.scale);
        at_level<&add_rows_range<A>>(data_of<A>(product.a) + c, columns, scaled.data(), rank, sum,
                                     n);
      }
      squared[o - first] += at_level<&squares_range<A>>(sum, n);
    }
  }
  for (int64_t o = first; o < last; ++o) norm[o] = static_cast<A>(std::sqrt(squared[o - first]));
}

}  // namespace

int32_t row_norm_kernel(Context* ctx, const balora_row_norm& o) {
  const View& weight = dense_or_encoded(o.weight);
  const std::vector<LowRankProduct> products = products_of(parts_of(o));
  const int64_t rows = weight.shape[0], blocks = (rows + kRows - 1) / kRows;
  dispatch_float(weight.dtype, [&]<typename T>() {
    parallel_for(ctx, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        norms_of<T>(weight, products, i * kRows, std::min(rows, (i + 1) * kRows),
                    data_of<Acc<T>>(o.norm));
      }
    });
  });
  return 0;
}

}  // namespace balora
