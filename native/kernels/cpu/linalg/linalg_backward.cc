// Gradients of qr, eigh and svd, in f64 from factors of any float dtype. Formulas:
// native/ops/linalg/*.cc.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/linalg/dense.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"

namespace balora {
namespace {

// Columns times d.
Matrix scaled_columns(Matrix a, const std::vector<double>& d) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) a(i, j) *= d[static_cast<size_t>(j)];
  }
  return a;
}

std::vector<double> widened_vector(const View* view) {
  const MatrixRef ref{view->data, view->dtype, 1, 1};
  return widened(ref, view->shape[0], 1).values;
}

// X R^-T for an upper triangular R, by substitution from the last column.
Matrix times_inverse_transposed(Matrix x, const Matrix& r) {
  for (int64_t j = r.rows - 1; j >= 0; --j) {
    for (int64_t i = 0; i < x.rows; ++i) {
      double sum = x(i, j);
      for (int64_t p = j + 1; p < r.cols; ++p) sum -= x(i, p) * r(j, p);
      x(i, j) = sum / r(j, j);
    }
  }
  return x;
}

// E o (X - X^T), with X = F^T dF and E_ij = 1 / (s_j^2 - s_i^2), 0 where they are equal.
Matrix rotation(const Matrix& x, const std::vector<double>& s) {
  Matrix out(x.rows, x.cols);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < x.cols; ++j) {
      const double a = s[static_cast<size_t>(i)], b = s[static_cast<size_t>(j)];
      out(i, j) = a == b ? 0 : (x(i, j) - x(j, i)) / ((b - a) * (b + a));
    }
  }
  return out;
}

std::vector<double> reciprocal(std::vector<double> s) {
  for (double& value : s) value = value > 0 ? 1 / value : 0;
  return s;
}

}  // namespace

int32_t qr_backward_kernel(Context* ctx, const balora_qr_backward& o) {
  const Matrix mq = widened(*o.q), mr = widened(*o.r);
  const int64_t n = mr.rows;
  Matrix gradient = o.dq ? widened(*o.dq) : Matrix(mq.rows, mq.cols);
  Matrix m = o.dr ? product(ctx, mr, transposed(widened(*o.dr))) : Matrix(n, n);
  if (o.dq) add(m, product_tn(ctx, gradient, mq), -1);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) m(i, j) = m(j, i);
  }
  add(gradient, product(ctx, mq, m));
  store_matrix(times_inverse_transposed(std::move(gradient), mr), *o.da);
  return 0;
}

int32_t eigh_backward_kernel(Context* ctx, const balora_eigh_backward& o) {
  const Matrix v = widened(*o.vectors);
  const std::vector<double> w = widened_vector(o.values);
  Matrix inner(v.rows, v.cols);
  if (o.dvectors) {
    inner = product_tn(ctx, v, widened(*o.dvectors));
    for (int64_t i = 0; i < v.rows; ++i) {
      for (int64_t j = 0; j < v.cols; ++j) {
        const double gap = w[static_cast<size_t>(j)] - w[static_cast<size_t>(i)];
        inner(i, j) = gap == 0 ? 0 : inner(i, j) / gap;
      }
    }
  }
  if (o.dvalues) {
    const std::vector<double> dw = widened_vector(o.dvalues);
    for (int64_t i = 0; i < v.rows; ++i) inner(i, i) += dw[static_cast<size_t>(i)];
  }
  Matrix full = product(ctx, product(ctx, v, inner), transposed(v));
  symmetrise(full);
  store_matrix(full, *o.da);
  return 0;
}

int32_t svd_backward_kernel(Context* ctx, const balora_svd_backward& o) {
  const Matrix mu = widened(*o.u), mvt = widened(*o.vt);
  const std::vector<double> sigma = widened_vector(o.s), inverse = reciprocal(sigma);
  const int64_t k = mu.cols;
  Matrix core(k, k), outside(mu.rows, mvt.cols);
  if (o.ds) {
    const std::vector<double> d = widened_vector(o.ds);
    for (int64_t i = 0; i < k; ++i) core(i, i) = d[static_cast<size_t>(i)];
  }
  if (o.du) {
    Matrix normal = widened(*o.du);
    const Matrix inner = product_tn(ctx, mu, normal);
    add(core, scaled_columns(rotation(inner, sigma), sigma));
    add(normal, product(ctx, mu, inner), -1);
    add(outside, product(ctx, scaled_columns(normal, inverse), mvt));
  }
  if (o.dvt) {
    Matrix normal = transposed(widened(*o.dvt));
    const Matrix v = transposed(mvt), inner = product_tn(ctx, v, normal);
    // S (E o ...) scales rows: the transpose of scaling the columns of its transpose.
    add(core, transposed(scaled_columns(transposed(rotation(inner, sigma)), sigma)));
    add(normal, product(ctx, v, inner), -1);
    add(outside, product(ctx, mu, transposed(scaled_columns(normal, inverse))));
  }
  add(outside, product(ctx, product(ctx, mu, core), mvt));
  store_matrix(outside, *o.da);
  return 0;
}

}  // namespace balora
