// See dense.h. Accuracy notes: a Gram matrix squares the condition number, so CholeskyQR2 is used
// below 1e6 only, and singular values never come from one; the SVD of a long matrix is that of its
// R factor.
#include "kernels/cpu/linalg/dense.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/messages.h"
#include "kernels/shared/philox.h"

namespace balora {
namespace {

using EigenMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using EigenColumns = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

Eigen::Map<EigenMatrix> map(Matrix& a) {
  return {a.values.data(), a.rows, a.cols};
}
Eigen::Map<const EigenMatrix> map(const Matrix& a) {
  return {a.values.data(), a.rows, a.cols};
}

// Eigen 5 has the options as a template argument, and deprecates the form of Eigen 3.4.
auto svd_of(const EigenColumns& a) {
  constexpr int kThin = Eigen::ComputeThinU | Eigen::ComputeThinV;
#if EIGEN_MAJOR_VERSION >= 5
  return Eigen::BDCSVD<EigenColumns, kThin>(a);
#else
  return Eigen::BDCSVD<EigenColumns>(a, kThin);
#endif
}

// One pass of A = Q R with R the Cholesky factor of A^T A; false when its diagonal spreads over
// more than `limit`.
bool cholesky_pass(const Context* ctx, Matrix& q, EigenMatrix& r, double limit) {
  const Matrix g = gram(ctx, q.ref(), q.rows, q.cols);
  const Eigen::LLT<EigenMatrix> factor(map(g));
  if (factor.info() != Eigen::Success) return false;
  r = factor.matrixU();
  const double largest = r.diagonal().maxCoeff(), smallest = r.diagonal().minCoeff();
  if (!(smallest > 0) || !(largest <= limit * smallest)) return false;
  parallel_for(ctx, q.rows, 256, [&](int64_t begin, int64_t end) {
    auto rows = map(q).middleRows(begin, end - begin);
    r.triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(rows);
  });
  return true;
}

bool cholesky_qr2(const Context* ctx, const Matrix& a, QrResult& result) {
  constexpr double kConditionLimit = 1e6;
  EigenMatrix first, second;
  Matrix q = a;
  if (!cholesky_pass(ctx, q, first, kConditionLimit)) return false;
  if (!cholesky_pass(ctx, q, second, 2.0)) return false;
  result.q = std::move(q);
  result.r = Matrix(a.cols, a.cols);
  map(result.r) = second.triangularView<Eigen::Upper>() * first;
  return true;
}

QrResult householder_qr(const Matrix& a) {
  const int64_t k = std::min(a.rows, a.cols);
  const EigenColumns source = map(a);
  const Eigen::HouseholderQR<EigenColumns> factor(source);
  QrResult result{Matrix(a.rows, k), Matrix(k, a.cols)};
  const EigenColumns q = factor.householderQ() * EigenColumns::Identity(a.rows, k);
  map(result.q) = q;
  map(result.r) = factor.matrixQR().topRows(k).template triangularView<Eigen::Upper>();
  for (int64_t i = 0; i < k; ++i) {
    if (result.r(i, i) >= 0) continue;
    for (int64_t j = i; j < a.cols; ++j) result.r(i, j) = -result.r(i, j);
    for (int64_t j = 0; j < a.rows; ++j) result.q(j, i) = -result.q(j, i);
  }
  return result;
}

}  // namespace

MatrixRef matrix_ref(const View& view) {
  const int64_t cols = view.shape[view.ndim - 1];
  return {view.data, view.dtype, cols, 1};
}

Matrix widened(const MatrixRef& a, int64_t rows, int64_t cols) {
  Matrix out(rows, cols);
  dispatch_float(a.dtype, [&]<typename T>() {
    const T* data = static_cast<const T*>(a.data);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        out(i, j) = static_cast<double>(load(data[i * a.row_stride + j * a.col_stride]));
      }
    }
  });
  return out;
}

Matrix widened(const View& view) {
  return widened(matrix_ref(view), view.shape[0], view.shape[1]);
}

void store_values(const double* values, int64_t count, const View& view) {
  dispatch_float(view.dtype, [&]<typename T>() {
    T* out = data_of<T>(&view);
    for (int64_t i = 0; i < count; ++i) out[i] = store<T>(static_cast<Acc<T>>(values[i]));
  });
}

void store_matrix(const Matrix& matrix, const View& view) {
  store_values(matrix.values.data(), matrix.rows * matrix.cols, view);
}

Matrix product(const Context* ctx, const MatrixRef& a, int64_t rows, const Matrix& b) {
  Matrix c(rows, b.cols);
  product_f64(ctx, rows, b.cols, b.rows, a, b.ref(), c.values.data(), c.cols);
  return c;
}
Matrix product(const Context* ctx, const Matrix& a, const Matrix& b) {
  return product(ctx, a.ref(), a.rows, b);
}
Matrix product_tn(const Context* ctx, const Matrix& a, const Matrix& b) {
  return product(ctx, a.ref().transposed(), a.cols, b);
}

Matrix gram(const Context* ctx, const MatrixRef& a, int64_t rows, int64_t cols) {
  Matrix g(cols, cols);
  symmetric_product_f64(ctx, cols, rows, a.transposed(), a, g.values.data());
  return g;
}

Matrix leading_columns(const Matrix& a, int64_t count) {
  Matrix out(a.rows, count);
  map(out) = map(a).leftCols(count);
  return out;
}

void add(Matrix& a, const Matrix& b, double factor) {
  for (size_t i = 0; i < a.values.size(); ++i) a.values[i] += factor * b.values[i];
}

Matrix residual_of(const Matrix& images, const Matrix& vectors, const std::vector<double>& values) {
  Matrix out = images;
  for (int64_t i = 0; i < out.rows; ++i) {
    for (int64_t j = 0; j < out.cols; ++j) {
      out(i, j) -= values[static_cast<size_t>(j)] * vectors(i, j);
    }
  }
  return out;
}

std::vector<double> column_norms(const Matrix& a) {
  std::vector<double> norms(static_cast<size_t>(a.cols), 0.0);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) norms[static_cast<size_t>(j)] += a(i, j) * a(i, j);
  }
  for (double& norm : norms) norm = std::sqrt(norm);
  return norms;
}

Matrix transposed(const Matrix& a) {
  Matrix out(a.cols, a.rows);
  map(out) = map(a).transpose();
  return out;
}

QrResult thin_qr(const Context* ctx, const Matrix& a) {
  QrResult result;
  if (a.rows >= a.cols && cholesky_qr2(ctx, a, result)) return result;
  return householder_qr(a);
}

bool orthonormal_weights(const Matrix& gram, double smallest, Matrix* weights) {
  const Eigen::VectorXd diagonal = map(gram).diagonal();
  if (!(diagonal.minCoeff() > 0) || !std::isfinite(diagonal.maxCoeff())) return false;
  const Eigen::VectorXd scale = diagonal.array().rsqrt();
  const EigenMatrix unit = scale.asDiagonal() * map(gram) * scale.asDiagonal();
  const Eigen::LLT<EigenMatrix> factor(unit);
  if (factor.info() != Eigen::Success) return false;
  const double pivot = factor.matrixLLT().diagonal().minCoeff();
  if (!(pivot * pivot >= smallest)) return false;
  *weights = Matrix(gram.rows, gram.cols);
  auto inverse = map(*weights);
  inverse.setIdentity();
  factor.matrixU().solveInPlace(inverse);
  inverse = scale.asDiagonal() * inverse;
  return true;
}

EighResult symmetric_eigen(const Matrix& a) {
  for (const double value : a.values) {
    if (!std::isfinite(value)) throw NativeError(messages::matrix_not_finite());
  }
  const EigenColumns source = map(a);
  const Eigen::SelfAdjointEigenSolver<EigenColumns> solver(source);
  if (solver.info() != Eigen::Success) {
    throw NativeError("the symmetric eigenvalue iteration did not converge");
  }
  EighResult result{std::vector<double>(static_cast<size_t>(a.rows)), Matrix(a.rows, a.rows)};
  std::copy_n(solver.eigenvalues().data(), a.rows, result.values.data());
  map(result.vectors) = solver.eigenvectors();
  return result;
}

EighResult leading_pairs(const EighResult& eigen, int64_t count) {
  const int64_t n = eigen.vectors.rows;
  EighResult out{{eigen.values.rbegin(), eigen.values.rbegin() + count}, Matrix(n, count)};
  for (int64_t i = 0; i < n; ++i) {
    std::reverse_copy(eigen.vectors.row(i) + n - count, eigen.vectors.row(i) + n,
                      out.vectors.row(i));
  }
  return out;
}

void symmetrise(Matrix& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < i; ++j) a(i, j) = a(j, i) = (a(i, j) + a(j, i)) / 2;
  }
}

SvdResult transposed(const SvdResult& a) {
  return {transposed(a.vt), a.s, transposed(a.u)};
}

SvdResult thin_svd(const Context* ctx, const Matrix& a) {
  if (a.rows < a.cols) {
    return transposed(thin_svd(ctx, transposed(a)));
  }
  for (const double value : a.values) {
    if (!std::isfinite(value)) throw NativeError(messages::matrix_not_finite());
  }
  const bool tall = a.rows > 2 * a.cols;
  QrResult qr;
  if (tall) qr = thin_qr(ctx, a);
  const EigenColumns core = map(tall ? std::as_const(qr.r) : a);
  const auto solver = svd_of(core);
  SvdResult result{Matrix(core.rows(), a.cols), std::vector<double>(static_cast<size_t>(a.cols)),
                   Matrix(a.cols, a.cols)};
  map(result.u) = solver.matrixU();
  map(result.vt) = solver.matrixV().transpose();
  std::copy_n(solver.singularValues().data(), a.cols, result.s.data());
  if (tall) result.u = product(ctx, qr.q, result.u);
  return result;
}

Matrix normal_matrix(const Context* ctx, int64_t rows, int64_t cols, uint64_t seed) {
  Matrix out(rows, cols);
  const int64_t count = rows * cols;
  parallel_for(ctx, (count + 1) / 2, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const NormalPair normals = philox_normals(seed, static_cast<uint64_t>(pair));
      out.values[static_cast<size_t>(2 * pair)] = normals.first;
      if (2 * pair + 1 < count) out.values[static_cast<size_t>(2 * pair + 1)] = normals.second;
    }
  });
  return out;
}

SvdResult triplets(const SvdResult& svd, int64_t first, int64_t count) {
  SvdResult out{Matrix(svd.u.rows, count),
                {svd.s.begin() + first, svd.s.begin() + first + count},
                Matrix(count, svd.vt.cols)};
  map(out.u) = map(svd.u).middleCols(first, count);
  map(out.vt) = map(svd.vt).middleRows(first, count);
  return out;
}

SvdResult svd_within(const Context* ctx, const MatrixRef& a, int64_t m, const Matrix& q,
                     int64_t count) {
  SvdResult found = triplets(thin_svd(ctx, product(ctx, a, m, q)), 0, count);
  found.vt = product(ctx, found.vt, transposed(q));
  return found;
}

void store_triplets(const SvdResult& svd, const SvdOperands& to) {
  store_matrix(svd.u, *to.u);
  store_values(svd.s.data(), to.s->shape[0], *to.s);
  store_matrix(svd.vt, *to.vt);
}

}  // namespace balora
