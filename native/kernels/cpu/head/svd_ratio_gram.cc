// The SVD regularizer of Z = H W^T without Z, for a linear and frozen head: sigma(Z)^2 = eig(H G
// H^T), G = W^T W. With P = H G the gradient is dL/dH = U diag(weights) U^T P + shift P. The
// leading pairs come from products with H and G alone (block Krylov); all pairs (nuclear norm) or
// small problems from the smaller of two dense matrices: H G H^T, or L^T (H^T H) L with G = L L^T,
// L from G's eigen-decomposition (Cholesky fails on rank-deficient heads), which also gives all
// singular values of Z (gram_spectrum).
#include <algorithm>
#include <cmath>

#include "kernels/cpu/head/svd_ratio.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"

namespace balora {
namespace {

struct GramProblem {
  const Context* ctx;
  MatrixRef h, g;
  int64_t n, c;
};

Matrix times_gram(const GramProblem& p) {
  Matrix out(p.n, p.c);
  product_f64(p.ctx, p.n, p.c, p.c, p.h, p.g, out.values.data(), p.c);
  return out;
}

// |Z|_F^2 = sum(P o H)
double squared_norm(const GramProblem& p, const Matrix& ph) {
  const Matrix h = widened(p.h, p.n, p.c);
  double sum = 0;
  for (size_t i = 0; i < h.values.size(); ++i) sum += h.values[i] * ph.values[i];
  return sum;
}

// Leading pairs of H G H^T without forming it. False when n is small or the iteration stalls.
bool leading_pairs(const GramProblem& p, int64_t k, RitzPairs& pairs) {
  constexpr int64_t kDenseOrder = 192;
  const int64_t block = k + 8, rank = std::min(p.n, p.c);
  if (rank <= kDenseOrder || block * 8 > rank) return false;
  bool converged = false;
  const auto apply = [&](const Matrix& x) {
    Matrix inner(p.c, x.cols), middle(p.c, x.cols), out(p.n, x.cols);
    product_f64(p.ctx, p.c, x.cols, p.n, p.h.transposed(), x.ref(), inner.values.data(), x.cols);
    product_f64(p.ctx, p.c, x.cols, p.c, p.g, inner.ref(), middle.values.data(), x.cols);
    product_f64(p.ctx, p.n, x.cols, p.c, p.h, middle.ref(), out.values.data(), x.cols);
    return out;
  };
  pairs = block_krylov(
      p.ctx, p.n, KrylovOptions{block}, apply,
      [&](const RitzPairs& found) {
        const auto last = found.residuals.begin() + k;
        return *std::max_element(found.residuals.begin(), last) <= 1e-12 * found.values[0];
      },
      &converged);
  pairs.values.resize(static_cast<size_t>(k));
  pairs.vectors = leading_columns(pairs.vectors, k);
  return converged;
}

// L (c,c) with G = L L^T; negative eigenvalues are rounding and count as zero.
Matrix gram_root(const MatrixRef& g, int64_t c) {
  EighResult eigen = symmetric_eigen(widened(g, c, c));
  for (int64_t i = 0; i < c; ++i) {
    for (int64_t j = 0; j < c; ++j) {
      eigen.vectors(i, j) *= std::sqrt(std::max(eigen.values[static_cast<size_t>(j)], 0.0));
    }
  }
  return std::move(eigen.vectors);
}

// L^T M L for a symmetric M.
Matrix congruent(const Context* ctx, const Matrix& root, const Matrix& m) {
  const Matrix right = product(ctx, m, root);
  Matrix out(root.cols, root.cols);
  symmetric_product_f64(ctx, root.cols, root.rows, root.ref().transposed(), right.ref(),
                        out.values.data());
  return out;
}

Matrix rows_gram(const GramProblem& p) {
  Matrix m(p.c, p.c);
  symmetric_product_f64(p.ctx, p.c, p.n, p.h.transposed(), p.h, m.values.data());
  return m;
}

// More rows than channels: dL/dH = H (A diag(weights) A^T + shift G), A = L V.
double tall_form(const GramProblem& p, int64_t k, bool nuclear, double norm2, Matrix* dh) {
  const Matrix root = gram_root(p.g, p.c);
  const RitzPairs pairs = ratio_eigenpairs(p.ctx, congruent(p.ctx, root, rows_gram(p)), k, nuclear);
  const SvdRatio ratio = svd_ratio(pairs.values, norm2, k, nuclear);
  if (!dh) return ratio.value;
  const Matrix a = product(p.ctx, root, pairs.vectors);
  Matrix weighted = a, inner = widened(p.g, p.c, p.c);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) weighted(i, j) *= ratio.weights[static_cast<size_t>(j)];
  }
  for (double& value : inner.values) value *= ratio.shift;
  add_product_f64(p.ctx, p.c, p.c, a.cols, weighted.ref(), a.ref().transposed(),
                  inner.values.data(), p.c);
  *dh = Matrix(p.n, p.c);
  product_f64(p.ctx, p.n, p.c, p.c, p.h, inner.ref(), dh->values.data(), p.c);
  return ratio.value;
}

// No more rows than channels, or pairs found already: dL/dH = U diag(weights) (U^T P) + shift P.
double wide_form(const GramProblem& p, int64_t k, bool nuclear, double norm2, const Matrix& ph,
                 RitzPairs pairs, Matrix* dh) {
  if (pairs.values.empty()) {
    Matrix gram(p.n, p.n);
    symmetric_product_f64(p.ctx, p.n, p.c, ph.ref(), p.h.transposed(), gram.values.data());
    pairs = ratio_eigenpairs(p.ctx, gram, k, nuclear);
  }
  const SvdRatio ratio = svd_ratio(pairs.values, norm2, k, nuclear);
  if (dh) *dh = ratio_gradient(p.ctx, pairs.vectors, ratio, ph);
  return ratio.value;
}

}  // namespace

int32_t svd_ratio_gram_kernel(Context* ctx, const balora_svd_ratio_gram& o) {
  // In f64 once: the iteration reads it some dozens of times.
  const Matrix wide = widened(matrix_ref(*o.h), o.h->shape[0], o.h->shape[1]);
  const GramProblem problem{ctx, wide.ref(), matrix_ref(*o.g), o.h->shape[0], o.h->shape[1]};
  const Matrix ph = times_gram(problem);
  const double norm2 = squared_norm(problem, ph);
  Matrix gradient;
  Matrix* wanted = o.dh ? &gradient : nullptr;
  RitzPairs pairs;
  const bool found = !o.nuclear && leading_pairs(problem, o.k, pairs);
  if (!found) pairs = {};
  *data_of<double>(o.value) =
      !found && problem.n > problem.c
          ? tall_form(problem, o.k, o.nuclear != 0, norm2, wanted)
          : wide_form(problem, o.k, o.nuclear != 0, norm2, ph, std::move(pairs), wanted);
  if (o.dh) store_matrix(gradient, *o.dh);
  return 0;
}

int32_t gram_spectrum_kernel(Context* ctx, const balora_gram_spectrum& o) {
  const int64_t c = o.m->shape[0];
  const Matrix root = gram_root(matrix_ref(*o.g), c);
  const EighResult eigen = symmetric_eigen(congruent(ctx, root, widened(matrix_ref(*o.m), c, c)));
  std::vector<double> sigma;
  for (int64_t i = c - 1; i >= 0; --i) {
    sigma.push_back(std::sqrt(std::max(eigen.values[static_cast<size_t>(i)], 0.0)));
  }
  store_values(sigma.data(), c, *o.s);
  return 0;
}

}  // namespace balora
