// The SVD regularizer of Z = H W^T without Z, for a linear and frozen head (the algebra is that of
// kernels/cpu/head/svd_ratio.cc): sigma(Z)^2 = eig(H G H^T), G = W^T W; with P = H G the
// gradient is U diag(weights) U^T P + shift P. The leading pairs come from products with H and P
// alone; all pairs (nuclear norm) or small problems from the smaller of two dense matrices: H G
// H^T, or L^T (H^T H) L with G = L L^T, L from G's eigen-decomposition (Cholesky fails on a
// rank-deficient G), which also gives all singular values of Z (gram_spectrum). f64 throughout:
// 2 N C^2 flops for P, 4 N C b for each of the iteration's 25 products, 32 N C bytes of scratch.
#include "head/svd_ratio.cuh"

namespace balora::cuda {
namespace {

constexpr const char* kRow = "svd_ratio_gram";

// vectors (c,c) by columns times sqrt(max(values, 0)).
__global__ void scale_columns(double* vectors, const double* values, int64_t c) {
  for (int64_t at = thread_index(); at < c * c; at += thread_count()) {
    const double value = values[at % c];
    vectors[at] *= sqrt(value > 0 ? value : 0.0);
  }
}

struct Problem {
  Scratch& scratch;
  Dense h, p, norm2 = {};  // (N,C), H G, |Z|^2
  const double* g;
  int64_t k;
  bool nuclear;

  int64_t wanted(int64_t order) const { return nuclear ? order : std::min(k, order); }
};

// L (c,c) with G = L L^T; negative eigenvalues are rounding and count as zero.
Dense gram_root(Scratch& scratch, const double* g, int64_t c, const char* row) {
  const Dense values(scratch, c, 1);
  Dense vectors(scratch, c, c);
  symmetric_eigen(scratch, c, g, {values.data(), vectors.data()}, row);
  launch(scratch.ctx(), row, elements(c * c), scale_columns, vectors.data(), values.data(), c);
  return vectors;
}

// L^T M L for a symmetric M.
Dense congruent(Scratch& scratch, const Dense& root, const Dense& m) {
  Dense out = product_tn(scratch, root, product(scratch, m, root));
  symmetrise(scratch.ctx(), out);
  return out;
}

// More rows than channels: dL/dH = H (A diag(weights) A^T + shift G), A = L V.
Dense tall_form(const Problem& t, double* value, bool gradient) {
  Scratch& scratch = t.scratch;
  const Dense root = gram_root(scratch, t.g, t.h.cols, kRow);
  const Dense gram = congruent(scratch, root, product_tn(scratch, t.h, t.h));
  const Eigenpairs pairs = leading_pairs(scratch, gram, t.wanted(gram.rows), kRow);
  const SvdRatio ratio = svd_ratio(scratch, pairs.values, t.norm2, t.k, t.nuclear, value);
  if (!gradient) return {};
  const Dense a = product(scratch, root, pairs.vectors), flipped = transposed(scratch, a);
  const Dense weighted = copied(scratch, flipped);
  scale_rows(scratch.ctx(), weighted, ratio.weights);
  const Dense inner = product_tn(scratch, flipped, weighted);
  Dense out = times_shift(scratch, t.p, ratio.shift);
  multiply(scratch.ctx(), {t.h.rows, t.h.cols, t.h.cols}, 1, {t.h.data(), t.h.cols},
           {inner.data(), inner.cols}, 1, out.data(), out.cols);
  return out;
}

Eigenpairs pairs_of(const Problem& t, bool iterates) {
  Scratch& scratch = t.scratch;
  const int64_t n = t.h.rows, c = t.h.cols;
  if (!iterates) {
    const Dense gram = product_nt(scratch, t.p, t.h);
    symmetrise(scratch.ctx(), gram);
    return leading_pairs(scratch, gram, t.wanted(n), kRow);
  }
  const ApplyOperator apply = [&](const double* x, int64_t x_stride, int64_t cols, double* y,
                                  int64_t y_stride) {
    const Dense inner(scratch, c, cols);
    multiply(scratch.ctx(), {c, cols, n}, 1, {t.h.data(), c, true}, {x, x_stride}, 0, inner.data(),
             cols);
    multiply(scratch.ctx(), {n, cols, c}, 1, {t.p.data(), c}, {inner.data(), cols}, 0, y, y_stride);
  };
  return krylov_pairs(scratch, n, t.k, apply, kRow);
}

// No more rows than channels, or leading pairs alone: dL/dH = U diag(weights) (U^T P) + shift P.
Dense wide_form(const Problem& t, bool iterates, double* value, bool gradient) {
  const Eigenpairs pairs = pairs_of(t, iterates);
  const SvdRatio ratio = svd_ratio(t.scratch, pairs.values, t.norm2, t.k, t.nuclear, value);
  if (!gradient) return {};
  return ratio_gradient(t.scratch, pairs.vectors, ratio, t.p);
}

// s = sqrt(max(values, 0)) in reverse.
__global__ void falling_roots(const double* values, int64_t n, double* s) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const double value = values[n - 1 - i];
    s[i] = value < 0 ? 0 : sqrt(value);
  }
}

}  // namespace

int32_t svd_ratio_gram_kernel(Context* ctx, const balora_svd_ratio_gram& o) {
  Scratch scratch(ctx);
  const int64_t n = o.h->shape[0], c = o.h->shape[1];
  Problem problem{.scratch = scratch,
                  .h = widened(scratch, *o.h),
                  .p = Dense(scratch, n, c),
                  .g = data_of<double>(o.g),
                  .k = o.k,
                  .nuclear = o.nuclear != 0};
  multiply(ctx, {n, c, c}, 1, {problem.h.data(), c}, {problem.g, c}, 0, problem.p.data(), c);
  problem.norm2 = sum_of_products(scratch, problem.h, problem.p);
  const bool iterates = !o.nuclear && iterates_for(std::min(n, c), o.k);
  double* to = data_of<double>(o.value);
  const Dense gradient = !iterates && n > c ? tall_form(problem, to, o.dh != nullptr)
                                            : wide_form(problem, iterates, to, o.dh != nullptr);
  if (o.dh) store_values(ctx, gradient.data(), *o.dh);
  return 0;
}

int32_t gram_spectrum_kernel(Context* ctx, const balora_gram_spectrum& o) {
  constexpr const char* kName = "gram_spectrum";
  Scratch scratch(ctx);
  const int64_t c = o.m->shape[0];
  const Dense root = gram_root(scratch, data_of<double>(o.g), c, kName);
  const Dense inner = congruent(scratch, root, widened(scratch, *o.m));
  const Dense values(scratch, c, 1), sigma(scratch, c, 1);
  symmetric_eigen(scratch, c, inner.data(), {.values = values.data()}, kName);
  launch(ctx, kName, elements(c), falling_roots, values.data(), c, sigma.data());
  store_values(ctx, sigma.data(), *o.s);
  return 0;
}

}  // namespace balora::cuda
