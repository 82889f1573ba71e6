// Dense f64 matrices and their decompositions for the kernels: the host side of qr, eigh, svd,
// randomized_svd and of the SVD regularizer. Products run in product_f64, the small decompositions
// in Eigen.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "kernels/cpu/products/product_f64.h"
#include "platform/platform.h"
#include "tensor/shape.h"

namespace balora {

// Row-major.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Matrix() = default;
  // Has at most as many elements as a tensor may have. @throws std::bad_alloc
  Matrix(int64_t r, int64_t c) : rows(r), cols(c), values(size_of(r, c)) {}

  double* row(int64_t i) { return values.data() + i * cols; }
  const double* row(int64_t i) const { return values.data() + i * cols; }
  double& operator()(int64_t i, int64_t j) { return row(i)[j]; }
  double operator()(int64_t i, int64_t j) const { return row(i)[j]; }
  MatrixRef ref() const { return {values.data(), BALORA_F64, cols, 1}; }

 private:
  static size_t size_of(int64_t r, int64_t c) {
    const auto count = checked_numel(std::array{r, c});
    if (!count) throw std::bad_alloc();
    platform::require_memory(static_cast<uint64_t>(*count) * sizeof(double));
    return static_cast<size_t>(*count);
  }
};

// A contiguous (m,n) view of any float dtype.
MatrixRef matrix_ref(const View& view);
Matrix widened(const MatrixRef& a, int64_t rows, int64_t cols);
Matrix widened(const View& view);
// Rounds to the view's dtype; the view is contiguous and has the matrix's number of elements.
void store_matrix(const Matrix& matrix, const View& view);
void store_values(const double* values, int64_t count, const View& view);

Matrix product(const Context* ctx, const Matrix& a, const Matrix& b);     // A B
Matrix product_tn(const Context* ctx, const Matrix& a, const Matrix& b);  // A^T B
// A B of an A (rows, rows of B) that is stored in any way, without a copy of it.
Matrix product(const Context* ctx, const MatrixRef& a, int64_t rows, const Matrix& b);
// A^T A of an A (rows,cols), likewise.
Matrix gram(const Context* ctx, const MatrixRef& a, int64_t rows, int64_t cols);
Matrix leading_columns(const Matrix& a, int64_t count);
void add(Matrix& a, const Matrix& b, double factor = 1);  // a += factor b
// images - vectors diag(values): what a product makes of eigenvectors outside of them.
Matrix residual_of(const Matrix& images, const Matrix& vectors, const std::vector<double>& values);
std::vector<double> column_norms(const Matrix& a);
Matrix transposed(const Matrix& a);

struct QrResult {
  Matrix q, r;  // thin: q (m,k), r (k,n), k = min(m,n); the diagonal of r is >= 0
};
// CholeskyQR2; Householder where the Gram matrix is ill-conditioned, so q is
// orthonormal for any input.
QrResult thin_qr(const Context* ctx, const Matrix& a);

// Weights (n,n), upper triangular, with Y weights orthonormal where gram = Y^T Y: Cholesky's way,
// once. False when Y's columns, scaled to length 1, leave a squared pivot below `smallest`.
bool orthonormal_weights(const Matrix& gram, double smallest, Matrix* weights);

struct EighResult {
  std::vector<double> values;  // ascending
  Matrix vectors;              // columns
};
// Reads the lower triangle. Throws NativeError when the iteration does not
// converge (NaN in the input).
EighResult symmetric_eigen(const Matrix& a);
// The `count` largest, in descending order.
EighResult leading_pairs(const EighResult& eigen, int64_t count);
// a = (a + a^T) / 2
void symmetrise(Matrix& a);

struct SvdResult {
  Matrix u;               // (m,k)
  std::vector<double> s;  // descending
  Matrix vt;              // (k,n)
};
SvdResult thin_svd(const Context* ctx, const Matrix& a);
SvdResult transposed(const SvdResult& a);  // the triplets of A^T
// `count` triplets from `first` on.
SvdResult triplets(const SvdResult& svd, int64_t first, int64_t count);
// Those of A (m,n) whose right vectors lie within the orthonormal columns of q, at most `count`.
SvdResult svd_within(const Context* ctx, const MatrixRef& a, int64_t m, const Matrix& q,
                     int64_t count);
void store_triplets(const SvdResult& svd, const SvdOperands& to);

// Standard normals that depend on (seed, index) only, filled in parallel.
Matrix normal_matrix(const Context* ctx, int64_t rows, int64_t cols, uint64_t seed);

}  // namespace balora
