#include "kernels/cpu/linalg/trailing_svd.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/cpu/linalg/side_by_side.h"
#include "kernels/cpu/linalg/subspace_steps.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/shared/messages.h"

namespace balora {
namespace {

constexpr int64_t kSmallestExtent = 160;  // below, the complete decomposition is as fast
constexpr int64_t kSurplus = 16;          // columns of the block beyond the rank, at least
constexpr int64_t kBlockMultiple = 8;     // as product_f64 takes columns
constexpr int64_t kLeaf = 96;             // order up to which rows are taken one by one
constexpr double kTolerance = 1e-8;       // |K v - value v| over value
constexpr double kLargestGrowth = 1e10;   // of a column between two orthonormalisations
constexpr int64_t kMostDegree = 8;
constexpr int kMaxRounds = 40;
constexpr double kSquaredCondition = 1e9;  // of A, up to which its Gram matrix alone will do
constexpr double kMostSquared = 1e13;      // up to which its inverse leads to that of A itself
constexpr int kMaxCorrections = 8;
constexpr double kWidestSpectrum = 1e12;  // first over last wanted eigenvalue of K
constexpr double kOrthonormal = 0.1;      // |Q^T Q - I| from which one more pass is exact
constexpr int kMaxPasses = 4;
constexpr double kSurplusGain = 3;  // of a filter over what the residual lacks
// The iteration in f32.
constexpr int kFloatProducts = 18;
constexpr int64_t kMostFloatDegree = 6;

// A part of a row-major matrix.
struct Part {
  double* data;
  int64_t ld;

  Part at(int64_t row, int64_t col) const { return {data + row * ld + col, ld}; }
  MatrixRef ref() const { return {data, BALORA_F64, ld, 1}; }
};

Part part_of(Matrix& a) {
  return {a.values.data(), a.cols};
}

// The rows of g become R, where g = R^T R, and those of x R^-1; both are read and written above the
// diagonal only. False unless g is positive definite.
BALORA_INLINE bool inverse_factor_leaf(double* g, int64_t ldg, int64_t n, double* x, int64_t ldx) {
  for (int64_t k = 0; k < n; ++k) {
    double* row = g + k * ldg;
    if (!(row[k] > 0)) return false;
    const double scale = 1 / std::sqrt(row[k]);
    for (int64_t j = k; j < n; ++j) row[j] *= scale;
    for (int64_t i = k + 1; i < n; ++i) {
      const double factor = row[i];
      double* below = g + i * ldg;
      for (int64_t j = i; j < n; ++j) below[j] -= factor * row[j];
    }
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    const double* row = g + i * ldg;
    double* out = x + i * ldx;
    std::fill(out + i, out + n, 0.0);
    for (int64_t k = i + 1; k < n; ++k) {
      const double factor = row[k];
      const double* below = x + k * ldx;
      for (int64_t j = k; j < n; ++j) out[j] -= factor * below[j];
    }
    const double scale = 1 / row[i];
    out[i] = 1;
    for (int64_t j = i; j < n; ++j) out[j] *= scale;
  }
  return true;
}

// x (n,n), zero before, becomes R^-1, upper triangular, where g = R^T R; g is overwritten. By
// halves, with R12 = R11^-T G12:
//   R^-1 = [R11^-1, -R11^-1 R12 R22^-1; 0, R22^-1]
// The products leave out half of the zeros of each triangle. False unless g is positive definite.
bool inverse_factor(const Context* ctx, const Part& g, int64_t n, const Part& x) {
  if (n <= kLeaf) return at_level<&inverse_factor_leaf>(g.data, g.ld, n, x.data, x.ld);
  const int64_t head = (n / 2 + kBlockMultiple - 1) / kBlockMultiple * kBlockMultiple;
  const int64_t tail = n - head, h = head / 2, t = tail / 2;
  if (!inverse_factor(ctx, g, head, x)) return false;
  const MatrixRef g12 = g.at(0, head).ref();
  Matrix r12(head, tail), square(tail, tail);
  product_f64(ctx, h, tail, h, x.ref().transposed(), g12, r12.row(0), tail);
  product_f64(ctx, head - h, tail, head, x.at(0, h).ref().transposed(), g12, r12.row(h), tail);
  symmetric_product_f64(ctx, tail, head, r12.ref().transposed(), r12.ref(), square.row(0));
  const Part rest = g.at(head, head), x22 = x.at(head, head), x12 = x.at(0, head);
  for (int64_t i = 0; i < tail; ++i) {
    double* row = rest.at(i, 0).data;
    for (int64_t j = 0; j < tail; ++j) row[j] -= square(i, j);
  }
  if (!inverse_factor(ctx, rest, tail, x22)) return false;
  Matrix right(head, tail);  // R12 R22^-1
  product_f64(ctx, head, t, t, r12.ref(), x22.ref(), right.row(0), tail);
  product_f64(ctx, head, tail - t, tail, r12.ref(), x22.at(0, t).ref(), right.row(0) + t, tail);
  const MatrixRef lower{right.row(h), BALORA_F64, tail, 1};
  product_f64(ctx, h, tail, head, x.ref(), right.ref(), x12.data, x12.ld);
  product_f64(ctx, head - h, tail, head - h, x.at(h, h).ref(), lower, x12.at(h, 0).data, x12.ld);
  for (int64_t i = 0; i < head; ++i) {
    double* row = x12.at(i, 0).data;
    for (int64_t j = 0; j < tail; ++j) row[j] = -row[j];
  }
  return true;
}

// R^-1; false where g is not positive definite.
bool inverse_factor(const Context* ctx, Matrix g, Matrix* x) {
  *x = Matrix(g.rows, g.rows);
  return inverse_factor(ctx, part_of(g), g.rows, part_of(*x));
}

// X q or X^T q for an upper triangular X, by rows without most of its zeros.
Matrix triangle_times(const Context* ctx, const Matrix& x, const Matrix& q, bool transposed) {
  constexpr int64_t kParts = 4;
  const int64_t n = x.rows;
  Matrix out(n, q.cols);
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t begin = n * part / kParts, end = n * (part + 1) / kParts;
    const int64_t first = transposed ? 0 : begin, depth = transposed ? end : n - begin;
    const MatrixRef rows{x.row(transposed ? 0 : begin) + begin, BALORA_F64, n, 1};
    const MatrixRef of_q{q.row(first), BALORA_F64, q.cols, 1};
    product_f64(ctx, end - begin, q.cols, depth, transposed ? rows.transposed() : rows, of_q,
                out.row(begin), out.cols);
  }
  return out;
}

// K = X X^T as a function.
Matrix times_k(const Context* ctx, const Matrix& x, const Matrix& q) {
  return triangle_times(ctx, x, triangle_times(ctx, x, q, true), false);
}

double trace(const Matrix& a) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows; ++i) sum += a(i, i);
  return sum;
}

double distance_from_identity(const Matrix& g) {
  double sum = 0;
  for (int64_t i = 0; i < g.rows; ++i) {
    for (int64_t j = 0; j < g.cols; ++j) {
      const double value = g(i, j) - (i == j ? 1 : 0);
      sum += value * value;
    }
  }
  return std::sqrt(sum);
}

// R^-1 of A = Q R, from the Gram matrix alone and then to the precision of A itself.
class InverseFactor {
 public:
  InverseFactor(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n)
      : ctx_(ctx), a_(a), m_(m), n_(n) {}

  // From the Gram matrix. False where that is not positive definite.
  bool make() {
    Matrix g = gram(ctx_, a_, m_, n_);
    energy_ = trace(g);
    if (!std::isfinite(energy_)) throw NativeError(messages::matrix_not_finite());
    made_ = inverse_factor(ctx_, std::move(g), &x_);
    return made_;
  }

  // Until the columns of A R^-1 are orthonormal. False where the numbers do not allow it.
  bool refine() {
    if (!made_) {
      // A shift of the size of the Gram matrix's own rounding makes it positive definite.
      Matrix g = gram(ctx_, a_, m_, n_);
      const double shift = 11 * static_cast<double>(n_ + m_) * 0x1p-52 * energy_;
      for (int64_t i = 0; i < n_; ++i) g(i, i) += shift;
      if (!inverse_factor(ctx_, std::move(g), &x_)) return false;
    }
    for (int pass = 0; pass < kMaxPasses; ++pass) {
      Matrix g = gram(ctx_, product(ctx_, a_, m_, x_).ref(), m_, n_);
      const bool last = distance_from_identity(g) <= kOrthonormal;
      Matrix more;
      if (!inverse_factor(ctx_, std::move(g), &more)) return false;
      x_ = product(ctx_, x_, more);
      if (last) return true;
    }
    return false;
  }

  // The squared Frobenius norm of A.
  double energy() const { return energy_; }
  // X = R^-1, so that K = X X^T.
  const Matrix& inverse() const { return x_; }

 private:
  const Context* ctx_;
  MatrixRef a_;
  int64_t m_, n_;
  double energy_ = 0;
  bool made_ = false;
  Matrix x_;
};

// A subspace iteration on K = X X^T in f32, which takes half of the time and memory of f64: the
// first eigenvectors to within f32's rounding of the largest eigenvalue.
class FloatIteration {
 public:
  FloatIteration(const Context* ctx, const Matrix& x, int64_t columns, uint64_t seed)
      : ctx_(ctx), n_(x.rows), rows_(tile_padded(x.rows)) {
    Arena size;
    lay_out(size, columns);
    memory_ = platform::allocate_aligned(static_cast<uint64_t>(size.used()));
    Arena arena(memory_.get());
    lay_out(arena, columns);
    std::fill_n(x_, rows_ * rows_, 0.0f);
    const double scale =
        1 / std::sqrt(squared_norm(x.values.data(), x.rows * x.cols));  // or squares may overflow
    parallel_for(ctx, n_, 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) narrow(x.row(i), n_, x_ + i * rows_, scale);
    });
    transpose_floats(x_, rows_, rows_, xt_);
    fill_uniform(q_, n_, seed);
  }

  // The vectors as columns (n,columns); nothing where the numbers do not allow it.
  std::optional<Matrix> run() {
    for (int products = 0; products < kFloatProducts;) {
      const int64_t degree = filter(std::min<int64_t>(products + 1, kMostFloatDegree));
      if (degree == 0 || !orthonormalise_columns(q_, z_, wide_, weights_)) return std::nullopt;
      products += static_cast<int>(degree);
    }
    Matrix out(n_, q_.cols);
    for (size_t i = 0; i < out.values.size(); ++i) out.values[i] = q_.values[i];
    return out;
  }

 private:
  void lay_out(Arena& arena, int64_t columns) {
    for (float** half : {&x_, &xt_}) *half = arena.take<float>(rows_ * rows_);
    for (FloatBlock* block : {&q_, &y_, &z_, &half_}) *block = take_block(arena, rows_, columns);
    wide_ = arena.take<double>(rows_ * columns);
    weights_ = arena.take<float>(columns * columns);
  }

  // y = K q. The zeros of either triangle are left out.
  void apply(const FloatBlock& q, const FloatBlock& y) {
    parallel_for(ctx_, rows_ / kTileUnit, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kTileUnit; i < end * kTileUnit; i += kTileUnit) {
        tile_gemm({kTileUnit, q.cols, i + kTileUnit}, xt_ + i * rows_, rows_, q.values,
                  half_.values + i * q.cols, q.cols, false);
      }
    });
    parallel_for(ctx_, rows_ / kTileUnit, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kTileUnit; i < end * kTileUnit; i += kTileUnit) {
        tile_gemm({kTileUnit, q.cols, rows_ - i}, x_ + i * rows_ + i, rows_,
                  half_.values + i * q.cols, y.values + i * q.cols, q.cols, false);
      }
    });
  }

  // q becomes T_d(2 K / beta - 1) q, where beta is the least Rayleigh quotient of its columns, and
  // K q for `most` 1. Returns d, 0 where the quotients are none of a positive definite matrix.
  int64_t filter(int64_t most) {
    apply(q_, y_);
    if (most == 1) {
      std::swap(q_.values, y_.values);
      return 1;
    }
    const Quotients quotients = rayleigh_quotients(q_, y_);
    if (!quotients.within(kWidestSpectrum)) return 0;
    return chebyshev_polynomial(q_, y_, z_, quotients, most,
                                [this](const FloatBlock& x, const FloatBlock& y) { apply(x, y); });
  }

  const Context* ctx_;
  int64_t n_, rows_;
  platform::AlignedMemory memory_;
  float *x_, *xt_;               // (n,n): X and X^T
  FloatBlock q_, y_, z_, half_;  // (n,columns)
  double* wide_;
  float* weights_;
};

// The first eigenvectors of K = X X^T.
class Subspace {
 public:
  Subspace(const Context* ctx, int64_t rank, uint64_t seed)
      : ctx_(ctx),
        rank_(rank),
        seed_(seed),
        columns_(tile_padded(rank + std::max(rank, kSurplus))) {}
  static bool fits(int64_t n, int64_t rank) {
    return n >= kSmallestExtent && 4 * (rank + std::max(rank, kSurplus)) <= n;
  }

  // False where the iteration does not settle.
  bool find(const Matrix& x) {
    std::optional<Matrix> near = FloatIteration(ctx_, x, columns_, seed_).run();
    if (!near) near = times_k(ctx_, x, normal_matrix(ctx_, x.rows, columns_, seed_));
    q_ = orthonormal(std::move(*near));
    for (int round = 0; round < kMaxRounds; ++round) {
      if (!ritz(x)) return false;
      const double residual = largest_residual();
      if (residual <= kTolerance) return true;
      filter(x, residual / kTolerance);
    }
    return false;
  }

  // Goes on with A itself after K has come from a Gram matrix that has lost some of A: with U = A q
  // and t the Ritz values of A^T A within q,
  //   q becomes q - K (A^T U - q t),
  // an inverse iteration whose error is that of K A^T A times the step. False where the steps do
  // not become small enough.
  bool correct(const Matrix& x, const MatrixRef& a, int64_t m) {
    for (int step = 0; step < kMaxCorrections; ++step) {
      const Matrix u = product(ctx_, a, m, q_);
      Matrix image = product(ctx_, a.transposed(), q_.rows, u);
      const EighResult eigen = symmetric_eigen(product_tn(ctx_, u, u));
      if (!(eigen.values[0] > 0)) return false;
      q_ = product(ctx_, q_, eigen.vectors);
      image = product(ctx_, image, eigen.vectors);
      const Matrix change = times_k(ctx_, x, residual_of(image, q_, eigen.values));
      add(q_, change, -1);
      q_ = orthonormal(std::move(q_));
      if (largest_norm(change) <= kTolerance) {
        y_ = q_;
        return true;
      }
    }
    return false;
  }

  // Eigenvalues, descending, and the wanted vectors (n,rank), that of the smallest eigenvalue first.
  // They are taken from K q: what q has of the largest singular values of A, which would outweigh
  // the last ones in A q, is nearly gone there.
  double first() const { return values_[0]; }
  double last_wanted() const { return values_[static_cast<size_t>(rank_ - 1)]; }
  Matrix reversed_vectors() const {
    Matrix out(y_.rows, rank_);
    for (int64_t i = 0; i < y_.rows; ++i) {
      for (int64_t j = 0; j < rank_; ++j) out(i, j) = y_(i, rank_ - 1 - j);
    }
    return orthonormal(std::move(out));
  }

 private:
  Matrix orthonormal(Matrix x) const {
    std::vector<double> scales = column_norms(x);
    for (double& scale : scales) scale = scale > 0 ? 1 / scale : 0;
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) x(i, j) *= scales[static_cast<size_t>(j)];
    }
    return thin_qr(ctx_, x).q;
  }

  // q becomes the Ritz vectors, y = K q. False for numbers that are not positive and finite.
  bool ritz(const Matrix& x) {
    const Matrix image = times_k(ctx_, x, q_);
    Matrix projected = product_tn(ctx_, q_, image);
    symmetrise(projected);
    EighResult leading = leading_pairs(symmetric_eigen(projected), q_.cols);
    values_ = std::move(leading.values);
    q_ = product(ctx_, q_, leading.vectors);
    y_ = product(ctx_, image, leading.vectors);
    return values_.back() > 0 && std::isfinite(values_[0]);
  }

  // The largest norm of the wanted columns; NaN counts as infinite.
  double largest_norm(const Matrix& columns) const {
    double most = 0;
    const std::vector<double> norms = column_norms(columns);
    for (size_t j = 0; j < static_cast<size_t>(rank_); ++j) {
      if (!std::isfinite(norms[j])) return HUGE_VAL;
      most = std::max(most, norms[j]);
    }
    return most;
  }

  double largest_residual() const {
    double most = 0;
    const std::vector<double> norms = column_norms(residual_of(y_, q_, values_));
    for (size_t j = 0; j < static_cast<size_t>(rank_); ++j) {
      most = std::max(most, norms[j] / values_[j]);
    }
    return most;
  }

  // q becomes orthonormal columns of T_d(2 K / beta - 1) q, whose values are within 1 on
  // [0, beta]; beta is the least Ritz value. The wanted part grows by `gain` at least, if the degree
  // may be as large as that takes.
  void filter(const Matrix& x, double gain) {
    const double half = values_.back() / 2;
    const auto growth = [&](double value) {
      return std::acosh(std::max(value / half - 1, 1.0 + 1e-9));
    };
    const double most = std::log(kLargestGrowth) / growth(values_[0]);
    const double enough = std::log(2 * kSurplusGain * gain) / growth(last_wanted());
    const auto degree = std::clamp(static_cast<int64_t>(std::min(most, std::ceil(enough))),
                                   int64_t{1}, kMostDegree);
    Matrix before = q_, now = y_;
    for (size_t i = 0; i < now.values.size(); ++i) {
      now.values[i] = now.values[i] / half - before.values[i];
    }
    for (int64_t d = 2; d <= degree; ++d) {
      Matrix next = times_k(ctx_, x, now);
      for (size_t i = 0; i < next.values.size(); ++i) {
        next.values[i] = 2 * (next.values[i] / half - now.values[i]) - before.values[i];
      }
      before = std::move(now);
      now = std::move(next);
    }
    q_ = orthonormal(std::move(now));
  }

  const Context* ctx_;
  int64_t rank_;
  uint64_t seed_;
  int64_t columns_;
  Matrix q_, y_;  // (n,b)
  std::vector<double> values_;
};

// The triplets of a tall matrix; nothing where its numbers do not allow it.
std::optional<SvdResult> within_subspace(const Context* ctx, const MatrixRef& a, int64_t m,
                                         int64_t n, int64_t rank, uint64_t seed) {
  InverseFactor factor(ctx, a, m, n);
  Subspace subspace(ctx, rank, seed);
  bool found = factor.make() && subspace.find(factor.inverse());
  const double squared = found ? factor.energy() * subspace.first() : HUGE_VAL;
  if (squared > kSquaredCondition) {
    found = squared <= kMostSquared && subspace.correct(factor.inverse(), a, m);
    if (!found) {
      if (!factor.refine()) return std::nullopt;
      found = subspace.find(factor.inverse());
    }
  }
  if (!found || subspace.first() > kWidestSpectrum * subspace.last_wanted()) return std::nullopt;
  return svd_within(ctx, a, m, subspace.reversed_vectors(), rank);
}

}  // namespace

SvdResult complete_trailing_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n,
                                int64_t rank) {
  return triplets(thin_svd(ctx, widened(a, m, n)), std::min(m, n) - rank, rank);
}

SvdResult trailing_svd(const Context* ctx, const MatrixRef& a, int64_t m, int64_t n, int64_t rank,
                       uint64_t seed) {
  if (m < n) return transposed(trailing_svd(ctx, a.transposed(), n, m, rank, seed));
  if (Subspace::fits(n, rank)) {
    std::optional<SvdResult> found = within_subspace(ctx, a, m, n, rank, seed);
    if (found) return std::move(*found);
  }
  return complete_trailing_svd(ctx, a, m, n, rank);
}

// Threads take small matrices whole: the steps of one do not fill several.
int32_t trailing_svds_kernel(Context* ctx, const balora_trailing_svds& o) {
  constexpr int64_t kSmallOrder = 2048;
  std::vector<size_t> small, large;
  for (int32_t i = 0; i < o.count; ++i) {
    const View& a = *o.tasks[i].a;
    const bool whole = o.count > 1 && std::min(a.shape[0], a.shape[1]) <= kSmallOrder;
    (whole ? small : large).push_back(static_cast<size_t>(i));
  }
  const auto solve = [&](const Context* with, size_t i) {
    const SvdOperands& task = o.tasks[i];
    const View& a = *task.a;
    const SvdResult found =
        trailing_svd(with, matrix_ref(a), a.shape[0], a.shape[1], task.s->shape[0], task.seed);
    store_triplets(found, task);
  };
  for (const size_t i : large) solve(ctx, i);
  side_by_side(ctx, small.size(), 0,
               [&](const Context* single, void*, size_t i) { solve(single, small[i]); });
  return 0;
}

}  // namespace balora
