// product_sum.h over packed weights and gemm(). A narrow C is written once: the whole sum is kept
// in f32 and converted.
#include "kernels/cpu/products/product_sum.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/products/packed_weight.h"
#include "kernels/cpu/products/row_product.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/shared/rows.h"

namespace balora {
namespace {

// In f32, of the sum of one block of C: 4 MiB, more where kLeastRows rows are longer.
constexpr int64_t kBlockElements = int64_t{1} << 20;
constexpr int64_t kLeastRows = 256;
constexpr int64_t kMostRows = kBlockElements / 64;

// Rows at a time of a sum some of whose left operands gemm() widens: it does so by parts of k,
// which hold about as much as the sum then. Every block of rows decodes or widens the weights anew.
constexpr int64_t kWidenedRows = 1024;

const PackedWeight* packed_of(Context* ctx, const ProductTerm& term) {
  if (term.alpha != 1 || term.a_dtype != term.b->dtype) return nullptr;
  return PackedWeight::of(ctx, *term.b, term.transposed);
}

// Elements of a weight in blocks that are decoded at a time: 4 MiB in f32.
constexpr int64_t kDecodedElements = int64_t{1} << 20;

// A part of a sum, or the whole: the columns [first, first + sum.n) of every B and of the bias.
struct Part {
  const ProductSum& sum;
  int64_t first = 0;
};

// C (m,n) = A B + beta C for a B in blocks: some of its stored rows at a time are decoded into
// scratch, as f32 where gemm() would widen them to that.
void multiply_decoded(Context* ctx, const Part& part, const ProductTerm& term, const GemmOutput& c,
                      double beta) {
  const ProductSum& sum = part.sum;
  const View& w = *term.b;
  const int64_t columns = w.shape[1], m = sum.m;
  const int64_t begin = term.transposed ? part.first : 0, rows = term.transposed ? sum.n : term.k();
  const int64_t fitting = std::max<int64_t>(kDecodedElements / std::max<int64_t>(columns, 1), 32);
  const int64_t block = std::min(fitting / 32 * 32, rows);
  const GemmInput a = {term.a, term.a_dtype, term.lda};
  if (w.shape[term.transposed ? 1 : 0] == 0) {
    return gemm(ctx, {m, sum.n, 0}, a, {w.data, w.dtype, 1}, c, {term.alpha, beta});
  }
  const bool widens = term.a_dtype != BALORA_F64 && !sum.by_rows && !gemm_has_bf16();
  const int32_t type = term.a_dtype == BALORA_F32 || widens ? BALORA_F32 : w.dtype;
  const Scratch<char> decoded(ctx, block * columns * element_size(type));
  void* const values = decoded.data();
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    decode_rows(ctx, w, begin + first, begin + first + count, type, values);
    if (!term.transposed) {  // a part of k
      const GemmInput some = {offset_by(term.a, first, term.a_dtype), term.a_dtype, term.lda};
      gemm(ctx, {m, columns, count}, some, {values, type, columns}, c,
           {term.alpha, first > 0 ? 1.0 : beta});
      continue;
    }
    const GemmInput b = {values, type, columns, true};
    const GemmOutput some = {offset_by(c.data, first, c.dtype), c.dtype, c.ld};
    if (sum.by_rows) {
      row_product(ctx, {m, count, columns}, a, b, some, beta);
    } else {
      gemm(ctx, {m, count, columns}, a, b, some, {term.alpha, beta});
    }
  }
}

// C (m,n) = A B + beta C for the rows of `term`; C in f32 or f64.
void multiply(Context* ctx, const Part& part, const ProductTerm& term, const GemmOutput& c,
              double beta) {
  const ProductSum& sum = part.sum;
  const int64_t m = sum.m, n = sum.n;
  if (term.int8) {
    const Int8Weight& copy = *term.int8;
    const Int8Matrix b = term.transposed ? copy.forward() : copy.backward();
    const float* const scale = term.transposed ? nullptr : copy.scale();
    const int64_t rotation = term.transposed ? copy.rotation() : 0;
    const Int8Rows a = term.int8_rows.q
                           ? term.int8_rows
                           : quantise_rows(ctx, term.a, term.a_dtype, m, b.k, scale, rotation);
    return int8_product(ctx, m, a, b, static_cast<float*>(c.data), c.ld, beta != 0);
  }
  if (term.b->encoding) return multiply_decoded(ctx, part, term, c, beta);
  if (sum.by_rows) {
    return row_product(ctx, {m, n, term.k()}, {term.a, term.a_dtype, term.lda},
                       {term.b->data, term.b->dtype, term.b->stride[0], true}, c, beta);
  }
  if (const PackedWeight* packed = packed_of(ctx, term)) {
    return packed->multiply(ctx, m, term.a, term.lda, c.data, c.ld, static_cast<float>(beta));
  }
  const GemmInput a = {term.a, term.a_dtype, term.lda};
  const int64_t ld = term.b->stride[0], first = part.first * (term.transposed ? ld : 1);
  const GemmInput b = {offset_by(term.b->data, first, term.b->dtype), term.b->dtype, ld,
                       term.transposed};
  gemm(ctx, {m, n, term.k()}, a, b, c, {term.alpha, beta});
}

// C rows = bias (+ C).
void add_bias(Context* ctx, const Part& part, const View& bias, const GemmOutput& c, bool keep) {
  const int64_t m = part.sum.m, n = part.sum.n;
  dispatch_float(bias.dtype, [&]<typename B>() {
    dispatch_float(c.dtype, [&]<typename C>() {
      const B* from = data_of<B>(&bias) + part.first;
      parallel_for(ctx, m, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          C* to = static_cast<C*>(c.data) + i * c.ld;
          for (int64_t j = 0; j < n; ++j) {
            const Acc<C> old = keep ? load(to[j]) : Acc<C>(0);
            to[j] = store<C>(old + static_cast<Acc<C>>(load(from[j])));
          }
        }
      });
    });
  });
}

// All terms into an f32 or f64 C.
void sum_wide(Context* ctx, const Part& part, const GemmOutput& c) {
  const ProductSum& sum = part.sum;
  bool written = sum.accumulate;
  if (sum.bias) {
    add_bias(ctx, part, *sum.bias, c, written);
    written = true;
  }
  for (const ProductTerm& term : sum.terms) {
    multiply(ctx, part, term, c, written ? 1 : 0);
    written = true;
  }
}

void sum_narrow(Context* ctx, const Part& part, const GemmOutput& c) {
  const ProductSum& sum = part.sum;
  const Scratch<float> sums(ctx, sum.m * sum.n);
  const GemmOutput wide = {sums.data(), BALORA_F32, sum.n};
  if (sum.accumulate) {
    convert_rows(ctx, {c.data, c.dtype, c.ld}, {sums.data(), BALORA_F32, sum.n}, sum.m, sum.n);
  }
  sum_wide(ctx, part, wide);
  convert_rows(ctx, {sums.data(), BALORA_F32, sum.n}, {c.data, c.dtype, c.ld}, sum.m, sum.n);
}

// Moves the left operand on by m rows, a multiple of those of a block of codes.
void advance(ProductTerm& term, int64_t m) {
  term.a = offset_by(term.a, m * term.lda, term.a_dtype);
  if (term.int8_rows.q) term.int8_rows = term.int8_rows.from(m);
}

// Whether C can be computed by columns: what is packed or in int8 is multiplied whole, and a
// gradient takes all columns of rows that are decoded.
bool stands_in_columns(Context* ctx, const ProductSum& sum) {
  return std::all_of(sum.terms.begin(), sum.terms.end(), [&](const ProductTerm& term) {
    return term.b->encoding ? term.transposed : !term.int8 && !packed_of(ctx, term);
  });
}

// The multiple of 64 that, by `extent`, makes one block, but `least` at least.
int64_t fitting(int64_t extent, int64_t least) {
  return std::max(kBlockElements / std::max<int64_t>(extent, 1) / 64 * 64, least);
}

}  // namespace

// A narrow C is computed in blocks of rows whose sums are f32 in scratch. So that a block of rows
// is as tall as it can be, and each of its weights is widened or decoded once, a forward pass
// divides its sum by columns; gemm() divides a gradient by parts of k.
void sum_products(Context* ctx, const ProductSum& sum, const GemmOutput& c) {
  if (sum.m == 0 || sum.n == 0) return;
  if (c.dtype == BALORA_F32 || c.dtype == BALORA_F64) return sum_wide(ctx, {sum}, c);
  const bool widens = !sum.by_rows && !gemm_has_bf16();
  const bool widens_left = widens && std::ranges::any_of(sum.terms, [](const ProductTerm& term) {
                             return term.a_dtype != BALORA_F32 && !term.int8;
                           });
  const bool by_columns = widens && !widens_left && stands_in_columns(ctx, sum);
  const int64_t most = std::min(by_columns ? kMostRows : fitting(sum.n, kLeastRows),
                                widens_left ? kWidenedRows : kMostRows);
  const int64_t height = even_share(sum.m, most);
  std::vector<ProductTerm> terms(sum.terms.begin(), sum.terms.end());
  for (int64_t first = 0; first < sum.m; first += height) {
    const int64_t m = std::min(height, sum.m - first);
    ProductSum part = sum;
    part.m = m, part.terms = terms;
    const int64_t width = by_columns ? fitting(m, 64) : sum.n;
    for (int64_t column = 0; column < sum.n; column += width) {
      part.n = std::min(width, sum.n - column);
      GemmOutput block = c;
      block.data = offset_by(c.data, first * c.ld + column, c.dtype);
      sum_narrow(ctx, {part, column}, block);
    }
    for (ProductTerm& term : terms) advance(term, m);
  }
}

}  // namespace balora
