#include "kernels/cpu/head/svd_ratio.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/head/passes.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/svd_ratio_tiles.h"

namespace balora {
namespace {

constexpr double kRankTolerance = 1e-6;

}  // namespace

SvdRatio svd_ratio(const std::vector<double>& squares, double squared_norm, int64_t k,
                   bool nuclear) {
  const size_t count = squares.size(), leading = std::min(count, static_cast<size_t>(k));
  SvdRatio ratio;
  ratio.weights.assign(count, 0.0);
  std::vector<double> sigma(count);
  // Eigenvalues at the rounding of the Gram matrix are zero: as singular values they
  // would add 1e-8 each.
  const double noise = count ? squares[0] * static_cast<double>(count) * 0x1p-52 : 0;
  for (size_t i = 0; i < count; ++i) sigma[i] = squares[i] > noise ? std::sqrt(squares[i]) : 0.0;
  const double sum =
      std::accumulate(sigma.begin(), sigma.begin() + static_cast<int64_t>(leading), 0.0);
  const double norm = nuclear ? std::accumulate(sigma.begin(), sigma.end(), 0.0)
                              : std::sqrt(std::max(squared_norm, 0.0));
  if (!(norm > 0) || count == 0) return ratio;
  ratio.value = -sum / norm;
  ratio.shift = nuclear ? 0.0 : sum / (norm * norm * norm);
  for (size_t i = 0; i < count; ++i) {
    if (sigma[i] <= kRankTolerance * sigma[0]) continue;
    double slope = i < leading ? -1 / norm : 0.0;
    if (nuclear) slope += sum / (norm * norm);
    ratio.weights[i] = slope / sigma[i];
  }
  return ratio;
}

RitzPairs ratio_eigenpairs(const Context* ctx, const Matrix& gram, int64_t k, bool nuclear) {
  return leading_eigenpairs(ctx, gram, nuclear ? gram.rows : std::min(k, gram.rows));
}

Matrix ratio_gradient(const Context* ctx, const Matrix& u, const SvdRatio& ratio, const Matrix& p) {
  Matrix inner = product_tn(ctx, u, p);
  for (int64_t i = 0; i < inner.rows; ++i) {
    for (int64_t j = 0; j < inner.cols; ++j) inner(i, j) *= ratio.weights[static_cast<size_t>(i)];
  }
  Matrix out = p;
  for (double& value : out.values) value *= ratio.shift;
  add_product_f64(ctx, u.rows, p.cols, u.cols, u.ref(), inner.ref(), out.values.data(), p.cols);
  return out;
}

// The SVD regularizer of Z = H W^T without Z, for a linear and frozen head: sigma(Z)^2 = eig(H G
// H^T), G = W^T W. With P = H G the gradient is dL/dH = U diag(weights) U^T P + shift P. The
// leading pairs come from products with H and G alone (block Krylov), in f64; what they leave of H
// is multiplied by G in f32, unless H is in f64 (the squares of logits must be within its range).
// All pairs (nuclear norm) or small problems come from the smaller of two dense matrices: H G H^T,
// or L^T (H^T H) L with G = L L^T, L from G's eigen-decomposition (Cholesky fails on rank-deficient
// heads), which also gives all singular values of Z (gram_spectrum).
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

// The SVD regularizer where the Gram form is not allowed: the head is trained (G changes every step
// and dW is wanted) or its logits are soft-capped (not linear). Tiles Z_t of Z = cap(H W^T) are
// made twice. Once they are summed to the smaller Gram matrix, over tiles of tokens, or of rows
// where these outnumber the vocabulary:
//   K = sum Z_t Z_t^T,  or  K = sum Z_t^T Z_t
// And once they are replaced by their gradients, from which those of the operands follow:
//   dZ_t = U diag(weights) U^T Z_t + shift Z_t, times 1 - (Z_t / cap)^2
//   dH += dZ_t W_t
//   dW_t = dZ_t^T H
namespace {

constexpr int64_t kDefaultTileBytes = int64_t{16} << 20;

template <typename A>
class Logits {
 public:
  Logits(Context* ctx, const balora_svd_ratio_tiles& o)
      : ctx_(ctx),
        h_(o.h),
        w_(o.w),
        softcap_(o.softcap),
        channels_(o.h->shape[1]),
        tiles_(o, sizeof(A) + sizeof(double), kDefaultTileBytes),
        logits_(workspace<A>(ctx, tiles_.tile_size())) {}

  // The smaller Gram matrix of the logits.
  Matrix gram() {
    const int64_t order = tiles_.order();
    Matrix sum(order, order);
    double* const to = sum.values.data();
    tiles_.each([&](const LogitsTile& tile) {
      make(tile);
      const MatrixRef z{logits_, kDtype, tile.tokens, 1};
      if (tiles_.by_rows()) {
        symmetric_product_f64(ctx_, order, tile.rows, z.transposed(), z, to, true);
      } else {
        symmetric_product_f64(ctx_, order, tile.tokens, z, z.transposed(), to, true);
      }
    });
    return sum;
  }

  void gradient(const Matrix& vectors, const SvdRatio& ratio, const View* dh, const View* dw) {
    const int64_t count = h_->shape[0] * channels_;
    A* sum = dh ? workspace<A>(ctx_, count) : nullptr;
    if (sum) std::fill_n(sum, count, A(0));
    tiles_.each([&](const LogitsTile& tile) {
      make(tile);
      replace_by_gradient(tile, vectors, ratio);
      if (dh) {
        gemm(ctx_, {tile.rows, channels_, tile.tokens}, {logits_, kDtype, tile.tokens},
             {rows_of(w_, tile.token), w_->dtype, channels_},
             {sum + tile.row * channels_, kDtype, channels_}, {1, 1});
      }
      if (dw) {
        gemm(ctx_, {tile.tokens, channels_, tile.rows}, {logits_, kDtype, tile.tokens, true},
             {rows_of(h_, tile.row), h_->dtype, channels_},
             {rows_of(dw, tile.token), dw->dtype, channels_}, {1, tile.row > 0 ? 1.0 : 0.0});
      }
    });
    if (!dh) return;
    dispatch_float(dh->dtype, [&]<typename T>() {
      T* out = data_of<T>(dh);
      for (int64_t i = 0; i < count; ++i) out[i] = store<T>(static_cast<Acc<T>>(sum[i]));
    });
  }

 private:
  static constexpr int32_t kDtype = kDtypeOfAcc<A>;

  void make(const LogitsTile& tile) {
    gemm(ctx_, {tile.rows, tile.tokens, channels_}, {rows_of(h_, tile.row), h_->dtype, channels_},
         {rows_of(w_, tile.token), w_->dtype, channels_, true}, {logits_, kDtype, tile.tokens});
    if (!(softcap_ > 0)) return;
    const A cap = static_cast<A>(softcap_);
    parallel_for(ctx_, tile.rows * tile.tokens, 1 << 14, [&](int64_t begin, int64_t end) {
      at_level<&head::cap_row<A>>(logits_ + begin, end - begin, cap);
    });
  }

  void replace_by_gradient(const LogitsTile& tile, const Matrix& vectors, const SvdRatio& ratio) {
    const MatrixRef logits{logits_, kDtype, tile.tokens, 1};
    Matrix z = widened(logits, tile.rows, tile.tokens);
    // From the right the roles of rows and columns swap:
    //   dZ^T = V diag(weights) V^T Z^T + shift Z^T
    z = tiles_.by_rows() ? transposed(ratio_gradient(ctx_, vectors, ratio, transposed(z)))
                         : ratio_gradient(ctx_, vectors, ratio, z);
    const double inverse = softcap_ > 0 ? 1 / softcap_ : 0;
    parallel_for(ctx_, tile.rows * tile.tokens, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const double capped = static_cast<double>(logits_[i]) * inverse;
        logits_[i] = static_cast<A>(z.values[static_cast<size_t>(i)] * (1 - capped * capped));
      }
    });
  }

  Context* ctx_;
  const View *h_, *w_;
  double softcap_;
  int64_t channels_;
  LogitsTiles tiles_;
  A* logits_;
};

template <typename A>
double ratio_of_tiles(Context* ctx, const balora_svd_ratio_tiles& o) {
  const bool nuclear = o.nuclear != 0;
  Logits<A> logits(ctx, o);
  const Matrix gram = logits.gram();
  double norm2 = 0;  // the sum of the squares of all logits
  for (int64_t i = 0; i < gram.rows; ++i) norm2 += gram(i, i);
  const RitzPairs pairs = ratio_eigenpairs(ctx, gram, o.k, nuclear);
  const SvdRatio ratio = svd_ratio(pairs.values, norm2, o.k, nuclear);
  if (o.dh || o.dw) logits.gradient(pairs.vectors, ratio, o.dh, o.dw);
  return ratio.value;
}

}  // namespace

int32_t svd_ratio_tiles_kernel(Context* ctx, const balora_svd_ratio_tiles& o) {
  *data_of<double>(o.value) =
      o.h->dtype == BALORA_F64 ? ratio_of_tiles<double>(ctx, o) : ratio_of_tiles<float>(ctx, o);
  return 0;
}

}  // namespace balora
