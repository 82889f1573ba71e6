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
#include "kernels/shared/rows.h"

namespace balora {
namespace {

constexpr int64_t kSumElements = int64_t{1} << 20;  // of the f32 sum of one block of rows: 4 MiB

const PackedWeight* packed_of(Context* ctx, const ProductTerm& term) {
  if (term.alpha != 1 || term.a_dtype != term.b->dtype) return nullptr;
  return PackedWeight::of(ctx, *term.b, term.transposed);
}

// Elements of a weight in blocks that are decoded at a time: 4 MiB in f32.
constexpr int64_t kDecodedElements = int64_t{1} << 20;

// C (m,n) = A B + beta C for the rows of `term`, whose B is in blocks: some rows of it at a time
// are decoded into scratch.
void multiply_decoded(Context* ctx, const ProductSum& sum, const ProductTerm& term,
                      const GemmOutput& c, double beta) {
  const View& w = *term.b;
  const int64_t rows = w.shape[0], columns = w.shape[1], m = sum.m;
  const int64_t fitting = std::max<int64_t>(kDecodedElements / std::max<int64_t>(columns, 1), 32);
  const int64_t block = std::min(fitting / 32 * 32, rows);
  const GemmInput a = {term.a, term.a_dtype, term.lda};
  if (w.shape[term.transposed ? 1 : 0] == 0) {
    return gemm(ctx, {m, sum.n, 0}, a, {w.data, w.dtype, 1}, c, {term.alpha, beta});
  }
  void* const values = CpuState::of(ctx).scratch(
      CpuState::kDecoded, static_cast<uint64_t>(block * columns * element_size(w.dtype)));
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    decode_rows(ctx, w, first, first + count, values);
    if (!term.transposed) {  // a part of k
      const GemmInput part = {offset_by(term.a, first, term.a_dtype), term.a_dtype, term.lda};
      gemm(ctx, {m, columns, count}, part, {values, w.dtype, columns}, c,
           {term.alpha, first > 0 ? 1.0 : beta});
      continue;
    }
    const GemmInput b = {values, w.dtype, columns, true};
    const GemmOutput part = {offset_by(c.data, first, c.dtype), c.dtype, c.ld};
    if (sum.by_rows) {
      row_product(ctx, {m, count, columns}, a, b, part, beta);
    } else {
      gemm(ctx, {m, count, columns}, a, b, part, {term.alpha, beta});
    }
  }
}

// C (m,n) = A B + beta C for the rows of `term`; C in f32 or f64.
void multiply(Context* ctx, const ProductSum& sum, const ProductTerm& term, const GemmOutput& c,
              double beta) {
  const int64_t m = sum.m, n = sum.n;
  if (term.int8) {
    const Int8Weight& copy = *term.int8;
    const Int8Matrix b = term.transposed ? copy.forward() : copy.backward();
    const float* const scale = term.transposed ? nullptr : copy.scale();
    const int64_t rotation = term.transposed ? copy.rotation() : 0;
    const Int8Rows a = quantise_rows(ctx, term.a, term.a_dtype, m, b.k, scale, rotation);
    return int8_product(ctx, m, a, b, static_cast<float*>(c.data), c.ld, beta != 0);
  }
  if (term.b->encoding) return multiply_decoded(ctx, sum, term, c, beta);
  if (sum.by_rows) {
    return row_product(ctx, {m, n, term.k()}, {term.a, term.a_dtype, term.lda},
                       {term.b->data, term.b->dtype, term.b->stride[0], true}, c, beta);
  }
  if (const PackedWeight* packed = packed_of(ctx, term)) {
    return packed->multiply(ctx, m, term.a, term.lda, c.data, c.dtype, c.ld,
                            static_cast<float>(beta));
  }
  const GemmInput a = {term.a, term.a_dtype, term.lda};
  const GemmInput b = {term.b->data, term.b->dtype, term.b->stride[0], term.transposed};
  gemm(ctx, {m, n, term.k()}, a, b, c, {term.alpha, beta});
}

// C rows = bias (+ C).
void add_bias(Context* ctx, int64_t m, int64_t n, const View& bias, const GemmOutput& c,
              bool keep) {
  dispatch_float(bias.dtype, [&]<typename B>() {
    dispatch_float(c.dtype, [&]<typename C>() {
      const B* from = data_of<B>(&bias);
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
void sum_wide(Context* ctx, const ProductSum& sum, const GemmOutput& c) {
  bool written = sum.accumulate;
  if (sum.bias) {
    add_bias(ctx, sum.m, sum.n, *sum.bias, c, written);
    written = true;
  }
  for (const ProductTerm& term : sum.terms) {
    multiply(ctx, sum, term, c, written ? 1 : 0);
    written = true;
  }
}

void sum_narrow(Context* ctx, const ProductSum& sum, const GemmOutput& c) {
  void* scratch = CpuState::of(ctx).scratch(CpuState::kSum, sum.m * sum.n * sizeof(float));
  const GemmOutput wide = {scratch, BALORA_F32, sum.n};
  if (sum.accumulate) {
    convert_rows(ctx, {c.data, c.dtype, c.ld}, {scratch, BALORA_F32, sum.n}, sum.m, sum.n);
  }
  sum_wide(ctx, sum, wide);
  convert_rows(ctx, {scratch, BALORA_F32, sum.n}, {c.data, c.dtype, c.ld}, sum.m, sum.n);
}

}  // namespace

void sum_products(Context* ctx, const ProductSum& sum, const GemmOutput& c) {
  if (sum.m == 0 || sum.n == 0) return;
  if (c.dtype == BALORA_F32 || c.dtype == BALORA_F64) {
    sum_wide(ctx, sum, c);
    return;
  }
  const int64_t fitting = std::max<int64_t>(kSumElements / sum.n / 64, 4) * 64;
  std::vector<ProductTerm> terms(sum.terms.begin(), sum.terms.end());
  for (int64_t first = 0; first < sum.m; first += fitting) {
    ProductSum block = sum;
    block.m = std::min(fitting, sum.m - first);
    block.terms = terms;
    GemmOutput rows = c;
    rows.data = offset_by(c.data, first * c.ld, c.dtype);
    sum_narrow(ctx, block, rows);
    for (ProductTerm& term : terms) term.a = offset_by(term.a, block.m * term.lda, term.a_dtype);
  }
}

}  // namespace balora
