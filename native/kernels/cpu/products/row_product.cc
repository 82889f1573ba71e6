// Products whose rows do not depend on each other. An element of C is the sum of the lanes of one
// vector, which goes along k; a block of rows and columns keeps as many vectors as there are
// registers. A single row is multiplied as often as a block has rows, since products are not what
// it waits for.
#include "kernels/cpu/products/row_product.h"

#include <algorithm>

#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/wide.h"

namespace balora {
namespace {

constexpr int64_t kCachedBytes = int64_t{1} << 19;  // of the rows of A that meet all of B at a time

template <typename T>
struct Product {
  const T* a;
  const T* b;
  Acc<T>* c;
  int64_t lda, ldb, ldc;
  int64_t k;
  bool accumulate;
  int64_t side;  // of a block, in vectors
};

// The last k % kWide values, filled up with zeros.
template <typename T>
BALORA_INLINE void load_rest(const T* from, int64_t count, Wide<Acc<T>>& to) {
  T rest[kWide<Acc<T>>] = {};
  std::memcpy(rest, from, static_cast<size_t>(count) * sizeof(T));
  load_wide(static_cast<const T*>(rest), to);
}

// `count` rows, no more than R; the last one stands for those that are not there. A compiler may
// round a product before it is added or not, and chooses by how many sums there are: so a column
// has one R, and one C, whatever the number of rows.
template <typename T, int R, int C>
BALORA_INLINE void multiply_block(const Product<T>& o, int64_t row, int64_t count, int64_t column) {
  using A = Acc<T>;
  const T* a[R];
  for (int r = 0; r < R; ++r) a[r] = o.a + (row + std::min<int64_t>(r, count - 1)) * o.lda;
  const T* b = o.b + column * o.ldb;
  Wide<A> sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = Wide<A>{};
  }
  const int64_t whole = o.k / kWide<A> * kWide<A>;
  for (int64_t at = 0; at < whole; at += kWide<A>) {
    Wide<A> x[R];
    for (int r = 0; r < R; ++r) load_wide(a[r] + at, x[r]);
    for (int c = 0; c < C; ++c) {
      Wide<A> w;
      load_wide(b + c * o.ldb + at, w);
      for (int r = 0; r < R; ++r) sums[r][c] += x[r] * w;
    }
  }
  if (whole < o.k) {
    Wide<A> x[R];
    for (int r = 0; r < R; ++r) load_rest(a[r] + whole, o.k - whole, x[r]);
    for (int c = 0; c < C; ++c) {
      Wide<A> w;
      load_rest(b + c * o.ldb + whole, o.k - whole, w);
      for (int r = 0; r < R; ++r) sums[r][c] += x[r] * w;
    }
  }
  for (int r = 0; r < R; ++r) {
    if (r >= count) break;
    for (int c = 0; c < C; ++c) {
      A& to = o.c[(row + r) * o.ldc + column + c];
      to = sum_lanes<A>(sums[r][c]) + (o.accumulate ? to : A(0));
    }
  }
}

template <typename T, int R, int C>
BALORA_INLINE void multiply_columns(const Product<T>& o, int64_t row, int64_t rows,
                                    int64_t column) {
  for (int64_t r = 0; r < rows; r += R) {
    multiply_block<T, R, C>(o, row + r, std::min<int64_t>(R, rows - r), column);
  }
}

// Rows [row, row + rows) by columns [begin, end), where begin is a multiple of 4, and end is or is
// the last.
template <typename T, int R>
BALORA_INLINE void multiply_range(const Product<T>& o, int64_t row, int64_t rows, int64_t begin,
                                  int64_t end) {
  for (; begin + R <= end; begin += R) multiply_columns<T, R, R>(o, row, rows, begin);
  for (; begin < end; ++begin) multiply_columns<T, R, 1>(o, row, rows, begin);
}

template <typename T>
BALORA_INLINE void multiply(const Product<T>& o, int64_t row, int64_t rows, int64_t begin,
                            int64_t end) {
  if (o.side == 4) return multiply_range<T, 4>(o, row, rows, begin, end);
  multiply_range<T, 2>(o, row, rows, begin, end);
}

// By how many vectors a processor keeps in registers.
constexpr Core<int64_t> kSides[] = {{"avx512", platform::kAvx512, 4}, {"any", 0, 2}};

}  // namespace

BALORA_IMPLEMENTATIONS(row_product, kSides)

void row_product(Context* ctx, const GemmShape& s, const GemmInput& a, const GemmInput& b,
                 const GemmOutput& c, double beta) {
  dispatch_float(a.dtype, [&]<typename T>() {
    const Product<T> product{.a = static_cast<const T*>(a.data),
                             .b = static_cast<const T*>(b.data),
                             .c = static_cast<Acc<T>*>(c.data),
                             .lda = a.ld,
                             .ldb = b.ld,
                             .ldc = c.ld,
                             .k = s.k,
                             .accumulate = beta != 0,
                             .side = first_core(kSides).run};
    const int64_t row_bytes = std::max<int64_t>(s.k, 1) * static_cast<int64_t>(sizeof(T));
    const int64_t rows = std::max<int64_t>(kCachedBytes / row_bytes / 4 * 4, 32);
    const int64_t grain = std::max<int64_t>(4, (1 << 15) / std::max<int64_t>(s.k * s.m, 1));
    // Threads take whole blocks of columns.
    parallel_for(ctx, (s.n + 3) / 4, (grain + 3) / 4, [&](int64_t begin, int64_t end) {
      const int64_t last = std::min(4 * end, s.n);
      for (int64_t row = 0; row < s.m; row += rows) {
        at_level<&multiply<T>>(product, row, std::min(rows, s.m - row), 4 * begin, last);
      }
    });
  });
}

}  // namespace balora
