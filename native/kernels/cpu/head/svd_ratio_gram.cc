// The SVD regularizer of Z = H W^T without Z, for a linear and frozen head: sigma(Z)^2 = eig(H G
// H^T), G = W^T W. With P = H G the gradient is dL/dH = U diag(weights) U^T P + shift P. The
// leading pairs come from products with H and G alone (block Krylov), in f64; what they leave of H
// is multiplied by G in f32, unless H is in f64 (the squares of logits must be within its range).
// All pairs (nuclear norm) or small problems come from the smaller of two dense matrices: H G H^T,
// or L^T (H^T H) L with G = L L^T, L from G's eigen-decomposition (Cholesky fails on rank-deficient
// heads), which also gives all singular values of Z (gram_spectrum).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/svd_ratio.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

// H (n,c) in f64: the iteration reads it some dozens of times.
struct GramProblem {
  Context* ctx;
  const double* wide;
  MatrixRef h, g;
  int64_t n, c;
};

int64_t row_grain(int64_t columns) {
  return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(columns, 1));
}

Matrix times_gram(const GramProblem& p) {
  Matrix out(p.n, p.c);
  product_f64(p.ctx, p.n, p.c, p.c, p.h, p.g, out.values.data(), p.c);
  return out;
}

// |Z|_F^2 = sum(P o H)
double squared_norm(const GramProblem& p, const Matrix& ph) {
  return std::inner_product(ph.values.begin(), ph.values.end(), p.wide, 0.0);
}

// Leading pairs of H G H^T without forming it. False when n is small or the iteration stalls.
bool leading_pairs(const GramProblem& p, int64_t k, RitzPairs& pairs) {
  constexpr int64_t kDenseOrder = 192;
  const int64_t block = krylov_block(k), rank = std::min(p.n, p.c);
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

// No more rows than channels: dL/dH = U diag(weights) (U^T P) + shift P.
double wide_form(const GramProblem& p, int64_t k, bool nuclear, double norm2, const Matrix& ph,
                 Matrix* dh) {
  Matrix gram(p.n, p.n);
  symmetric_product_f64(p.ctx, p.n, p.c, ph.ref(), p.h.transposed(), gram.values.data());
  const RitzPairs pairs = ratio_eigenpairs(p.ctx, gram, k, nuclear);
  const SvdRatio ratio = svd_ratio(pairs.values, norm2, k, nuclear);
  if (dh) *dh = ratio_gradient(p.ctx, pairs.vectors, ratio, ph);
  return ratio.value;
}

double dense_form(const GramProblem& p, const balora_svd_ratio_gram& o) {
  const Matrix ph = times_gram(p);
  const double norm2 = squared_norm(p, ph);
  const bool nuclear = o.nuclear != 0;
  Matrix gradient;
  Matrix* const wanted = o.dh ? &gradient : nullptr;
  const double value = p.n > p.c ? tall_form(p, o.k, nuclear, norm2, wanted)
                                 : wide_form(p, o.k, nuclear, norm2, ph, wanted);
  if (o.dh) store_matrix(gradient, *o.dh);
  return value;
}

// sum_j p_j h_j
template <typename T>
BALORA_INLINE double dot_loop(const T* p, const T* h, int64_t c) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < c; ++j) sum += static_cast<double>(p[j]) * static_cast<double>(h[j]);
  return sum;
}
template <typename T>
double row_dot(const T* p, const T* h, int64_t c) {
  return at_level<&dot_loop<T>>(p, h, c);
}

// to += factor row
BALORA_INLINE void add_row_loop(double factor, const double* row, int64_t c, double* to) {
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) to[j] += factor * row[j];
}
void add_row(double factor, const double* row, int64_t c, double* to) {
  at_level<&add_row_loop>(factor, row, c, to);
}

// The term of leading pairs. H is what they make of it, U T with T = U^T H, and a rest, whose
// product with G alone takes time: in the type A. The pairs' own part stays in f64, so that nothing
// is lost where they are nearly all of Z and the two parts of the gradient nearly cancel.
template <typename A>
class LeadingForm {
 public:
  LeadingForm(const GramProblem& problem, const RitzPairs& pairs)
      : p_(problem),
        pairs_(pairs),
        inside_(pairs.vectors.cols, p_.c),
        outside_(workspace<A>(p_.ctx, p_.n * p_.c)),
        product_(workspace<A>(p_.ctx, p_.n * p_.c)) {
    const Matrix& u = pairs_.vectors;
    product_f64(p_.ctx, u.cols, p_.c, p_.n, u.ref().transposed(), p_.h, inside_.values.data(),
                p_.c);
    for_rows([&](int64_t i, double* row) {
      std::copy_n(p_.wide + i * p_.c, p_.c, row);
      for (int64_t k = 0; k < u.cols; ++k) add_row(-u(i, k), inside_.row(k), p_.c, row);
      convert_row(row, outside_ + i * p_.c, p_.c);
    });
    auto* const g = workspace<A>(p_.ctx, p_.c * p_.c);
    convert_row(static_cast<const double*>(p_.g.data), g, p_.c * p_.c);
    gemm(p_.ctx, {p_.n, p_.c, p_.c}, {outside_, kDtypeOfAcc<A>, p_.c}, {g, kDtypeOfAcc<A>, p_.c},
         {product_, kDtypeOfAcc<A>, p_.c});
  }

  // |Z|_F^2, the rest of it by rows.
  double squared_norm() const {
    std::vector<double> sums(static_cast<size_t>(p_.n));
    for_rows([&](int64_t i, double*) {
      sums[static_cast<size_t>(i)] = row_dot(product_ + i * p_.c, outside_ + i * p_.c, p_.c);
    });
    return std::accumulate(pairs_.values.begin(), pairs_.values.end(),
                           std::accumulate(sums.begin(), sums.end(), 0.0));
  }

  // dL/dH = U diag(weights + shift) T G + shift (the rest) G, rounded once.
  void gradient(const SvdRatio& ratio, const View& dh) const {
    const Matrix& u = pairs_.vectors;
    Matrix inner(u.cols, p_.c);
    product_f64(p_.ctx, u.cols, p_.c, p_.c, inside_.ref(), p_.g, inner.values.data(), p_.c);
    for (int64_t k = 0; k < u.cols; ++k) {
      const double weight = ratio.weights[static_cast<size_t>(k)] + ratio.shift;
      for (int64_t j = 0; j < p_.c; ++j) inner(k, j) *= weight;
    }
    dispatch_float(dh.dtype, [&]<typename T>() {
      for_rows([&](int64_t i, double* row) {
        const A* const rest = product_ + i * p_.c;
        std::transform(rest, rest + p_.c, row,
                       [&](A x) { return ratio.shift * static_cast<double>(x); });
        for (int64_t k = 0; k < u.cols; ++k) add_row(u(i, k), inner.row(k), p_.c, row);
        convert_row(row, data_of<T>(&dh) + i * p_.c, p_.c);
      });
    });
  }

 private:
  // Calls body(i, c doubles of its own) for each row.
  template <typename Body>
  void for_rows(const Body& body) const {
    parallel_for(p_.ctx, p_.n, row_grain(p_.c), [&](int64_t begin, int64_t end) {
      std::vector<double> row(static_cast<size_t>(p_.c));
      for (int64_t i = begin; i < end; ++i) body(i, row.data());
    });
  }

  const GramProblem& p_;
  const RitzPairs& pairs_;
  Matrix inside_;          // T (k,c)
  A *outside_, *product_;  // (n,c): the rest of H, and that times G
};

template <typename A>
double leading_form(const GramProblem& p, const RitzPairs& pairs, const balora_svd_ratio_gram& o) {
  const LeadingForm<A> form(p, pairs);
  const SvdRatio ratio = svd_ratio(pairs.values, form.squared_norm(), o.k, false);
  if (o.dh) form.gradient(ratio, *o.dh);
  return ratio.value;
}

}  // namespace

int32_t svd_ratio_gram_kernel(Context* ctx, const balora_svd_ratio_gram& o) {
  const View& h = *o.h;
  const int64_t n = h.shape[0], c = h.shape[1];
  auto* const wide = workspace<double>(ctx, n * c);
  convert_rows(ctx, {h.data, h.dtype, c}, {wide, BALORA_F64, c}, n, c);
  const GramProblem problem{.ctx = ctx,
                            .wide = wide,
                            .h = {wide, BALORA_F64, c, 1},
                            .g = matrix_ref(*o.g),
                            .n = n,
                            .c = c};
  double& value = *data_of<double>(o.value);
  RitzPairs pairs;
  if (o.nuclear || !leading_pairs(problem, o.k, pairs)) {
    value = dense_form(problem, o);
  } else if (h.dtype == BALORA_F64) {
    value = leading_form<double>(problem, pairs, o);
  } else {
    value = leading_form<float>(problem, pairs, o);
  }
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
