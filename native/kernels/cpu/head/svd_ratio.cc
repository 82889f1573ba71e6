// The SVD regularizer L = -(sum of the k largest singular values of Z) / F, F the Frobenius or the
// nuclear norm of Z, from the eigenvalues of a Gram matrix of Z. Its gradient is
//   dL/dZ = U diag(weights) U^T Z + shift Z
// over left singular vectors (the same from the right: Z V diag(weights) V^T + shift Z), weights_i
// = (dL/dsigma_i)/sigma_i without the Frobenius norm's part, which is the shift.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/head/passes.h"
#include "kernels/cpu/linalg/krylov.h"
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

struct SvdRatio {
  RitzPairs pairs;
  double value = 0;             // 0 for Z = 0
  std::vector<double> weights;  // one per pair
  double shift = 0;
};

// `pairs` of Z Z^T, in descending order: at least min(k, rank) of them, all for the nuclear norm.
// Singular values up to 1e-6 of the largest carry no gradient: the smallest-norm subgradient where
// k exceeds the numerical rank.
SvdRatio svd_ratio(RitzPairs pairs, double squared_norm, int64_t k, bool nuclear) {
  SvdRatio ratio = {.pairs = std::move(pairs)};
  const std::vector<double>& squares = ratio.pairs.values;
  const size_t count = squares.size(), leading = std::min(count, static_cast<size_t>(k));
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

// The same of an explicit Gram matrix.
SvdRatio ratio_of_gram(const Context* ctx, const Matrix& gram, double squared_norm, int64_t k,
                       bool nuclear) {
  const int64_t wanted = nuclear ? gram.rows : std::min(k, gram.rows);
  return svd_ratio(leading_eigenpairs(ctx, gram, wanted), squared_norm, k, nuclear);
}

// A diag(factors)
Matrix scaled_columns(Matrix a, const std::vector<double>& factors) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) a(i, j) *= factors[static_cast<size_t>(j)];
  }
  return a;
}

// left diag(weights) right + shift base
Matrix weighted_sum(const Context* ctx, const SvdRatio& ratio, const Matrix& left,
                    const MatrixRef& right, Matrix base) {
  for (double& value : base.values) value *= ratio.shift;
  add_product_f64(ctx, base.rows, base.cols, left.cols, scaled_columns(left, ratio.weights).ref(),
                  right, base.values.data(), base.cols);
  return base;
}

// U diag(weights) (U^T p) + shift p
Matrix ratio_gradient(const Context* ctx, const SvdRatio& ratio, const Matrix& p) {
  const Matrix& u = ratio.pairs.vectors;
  return weighted_sum(ctx, ratio, u, product_tn(ctx, u, p).ref(), p);
}

// The SVD regularizer of Z = H W^T without Z, for a linear and frozen head: sigma(Z)^2 = eig(H G
// H^T), G = W^T W. With P = H G the gradient is dL/dH = U diag(weights) U^T P + shift P. The
// leading pairs come from products with H and G alone (block Krylov), in f64; what they leave of H
// is multiplied by G in f32, unless H is in f64 (the squares of logits must be within its range).
// All pairs (nuclear norm) or small problems come from the smaller of two dense matrices: H G H^T,
// or L^T (H^T H) L with G = L L^T, L from G's eigen-decomposition (Cholesky fails on rank-deficient
// heads), which also gives all singular values of Z (gram_spectrum).

// H (n,c) in f64: the iteration reads it some dozens of times.
struct GramProblem {
  Context* ctx;
  double* wide;
  MatrixRef h, g;
  int64_t n, c;
};

// Leading pairs of H G H^T without forming it. False when n is small or the iteration stalls.
bool leading_pairs(const GramProblem& p, int64_t k, RitzPairs& pairs) {
  constexpr int64_t kDenseOrder = 192;
  const int64_t block = krylov_block(k), rank = std::min(p.n, p.c);
  if (rank <= kDenseOrder || block * 8 > rank) return false;
  bool converged = false;
  const auto apply = [&](const Matrix& x) {
    const Matrix inner = product(p.ctx, p.h.transposed(), p.c, x);
    return product(p.ctx, p.h, p.n, product(p.ctx, p.g, p.c, inner));
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
  for (double& value : eigen.values) value = std::sqrt(std::max(value, 0.0));
  return scaled_columns(std::move(eigen.vectors), eigen.values);
}

// L^T M L for a symmetric M.
Matrix congruent(const Context* ctx, const Matrix& root, const Matrix& m) {
  const Matrix right = product(ctx, m, root);
  Matrix out(root.cols, root.cols);
  symmetric_product_f64(ctx, root.cols, root.rows, root.ref().transposed(), right.ref(),
                        out.values.data());
  return out;
}

// The term of all pairs, and its gradient. More rows than channels: H (A diag(weights) A^T +
// shift G), A = L V; else U diag(weights) (U^T P) + shift P.
double dense_form(const GramProblem& p, const balora_svd_ratio_gram& o) {
  const Matrix ph = product(p.ctx, p.h, p.n, widened(p.g, p.c, p.c));
  // |Z|_F^2 = sum(P o H)
  const double norm2 = std::inner_product(ph.values.begin(), ph.values.end(), p.wide, 0.0);
  const bool tall = p.n > p.c;
  Matrix root, inner;
  if (tall) {
    root = gram_root(p.g, p.c);
    inner = congruent(p.ctx, root, gram(p.ctx, p.h, p.n, p.c));
  } else {
    inner = Matrix(p.n, p.n);
    symmetric_product_f64(p.ctx, p.n, p.c, ph.ref(), p.h.transposed(), inner.values.data());
  }
  const SvdRatio ratio = ratio_of_gram(p.ctx, inner, norm2, o.k, o.nuclear != 0);
  if (!o.dh) return ratio.value;
  if (tall) {
    const Matrix a = product(p.ctx, root, ratio.pairs.vectors);
    const Matrix sum = weighted_sum(p.ctx, ratio, a, a.ref().transposed(), widened(p.g, p.c, p.c));
    store_matrix(product(p.ctx, p.h, p.n, sum), *o.dh);
  } else {
    store_matrix(ratio_gradient(p.ctx, ratio, ph), *o.dh);
  }
  return ratio.value;
}

// The sum of a o b, by rows (n,c).
template <typename A>
double inner_product(const GramProblem& p, const A* a, const A* b) {
  std::vector<double> sums(static_cast<size_t>(p.n));
  parallel_for(p.ctx, p.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = i * p.c; j < (i + 1) * p.c; ++j) {
        sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
      }
      sums[static_cast<size_t>(i)] = sum;
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// The term of leading pairs. H is what they make of it, U T with T = U^T H, and a rest, whose
// product with G alone takes time: in the type A. The pairs' own part stays in f64, so that nothing
// is lost where they are nearly all of Z and the two parts of the gradient nearly cancel:
//   dL/dH = U diag(weights + shift) T G + shift (the rest) G, rounded once.
// H in f64 gives its place to the rest, and that to the gradient.
template <typename A>
double leading_form(const GramProblem& p, RitzPairs pairs, const balora_svd_ratio_gram& o) {
  constexpr int32_t kType = kDtypeOfAcc<A>;
  const int64_t n = p.n, c = p.c, k = pairs.vectors.cols;
  const Matrix& u = pairs.vectors;
  const Matrix inside = product(p.ctx, p.h.transposed(), c, u);  // T^T
  const Matrix minus = scaled_columns(u, std::vector<double>(static_cast<size_t>(k), -1.0));
  add_product_f64(p.ctx, n, c, k, minus.ref(), inside.ref().transposed(), p.wide, c);
  A* const outside = workspace<A>(p.ctx, n * c);
  A* const times_g = workspace<A>(p.ctx, n * c);
  A* const g = workspace<A>(p.ctx, c * c);
  convert_rows(p.ctx, {p.wide, BALORA_F64, c}, {outside, kType, c}, n, c);
  convert_rows(p.ctx, {p.g.data, BALORA_F64, c}, {g, kType, c}, c, c);
  gemm(p.ctx, {n, c, c}, {outside, kType, c}, {g, kType, c}, {times_g, kType, c});
  const double norm2 =
      std::accumulate(pairs.values.begin(), pairs.values.end(), inner_product(p, times_g, outside));
  SvdRatio ratio = svd_ratio(std::move(pairs), norm2, o.k, false);
  if (!o.dh) return ratio.value;
  parallel_for(p.ctx, n * c, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p.wide[i] = ratio.shift * static_cast<double>(times_g[i]);
  });
  for (double& weight : ratio.weights) weight += ratio.shift;
  const Matrix weighted = scaled_columns(ratio.pairs.vectors, ratio.weights);
  const Matrix inner = product(p.ctx, p.g, c, inside);
  add_product_f64(p.ctx, n, c, k, weighted.ref(), inner.ref().transposed(), p.wide, c);
  convert_rows(p.ctx, {p.wide, BALORA_F64, c}, {o.dh->data, o.dh->dtype, c}, n, c);
  return ratio.value;
}

}  // namespace

int32_t svd_ratio_gram_kernel(Context* ctx, const balora_svd_ratio_gram& o) {
  const View& h = *o.h;
  const int64_t n = h.shape[0], c = h.shape[1];
  auto* const wide = workspace<double>(ctx, n * c);
  convert_rows(ctx, {h.data, h.dtype, c}, {wide, BALORA_F64, c}, n, c);
  const GramProblem problem{ctx, wide, {wide, BALORA_F64, c, 1}, matrix_ref(*o.g), n, c};
  double& value = *data_of<double>(o.value);
  RitzPairs pairs;
  const auto leading = h.dtype == BALORA_F64 ? leading_form<double> : leading_form<float>;
  value = o.nuclear || !leading_pairs(problem, o.k, pairs) ? dense_form(problem, o)
                                                           : leading(problem, std::move(pairs), o);
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
class TiledLogits {
 public:
  TiledLogits(Context* ctx, const balora_svd_ratio_tiles& o)
      : ctx_(ctx),
        o_(o),
        channels_(o.h->shape[1]),
        tiles_(o, sizeof(A) + sizeof(double), kDefaultTileBytes),
        logits_(workspace<A>(ctx, tiles_.tile_size())) {}

  // The smaller Gram matrix of the logits.
  Matrix gram() {
    const int64_t order = tiles_.order();
    Matrix sum(order, order);
    tiles_.each([&](const LogitsTile& tile) {
      const MatrixRef z = make(tile);
      symmetric_product_f64(ctx_, order, depth(tile), z, z.transposed(), sum.values.data(), true);
    });
    return sum;
  }

  void gradient(const SvdRatio& ratio) {
    const int64_t rows = o_.h->shape[0];
    A* sum = o_.dh ? workspace<A>(ctx_, rows * channels_) : nullptr;
    tiles_.each([&](const LogitsTile& tile) {
      replace_by_gradient(tile, ratio, make(tile));
      if (sum) {
        gemm(ctx_, {tile.rows, channels_, tile.tokens}, {logits_, kDtype, tile.tokens},
             rows_from(*o_.w, tile.token), {sum + tile.row * channels_, kDtype, channels_},
             {1, tile.token > 0 ? 1.0 : 0.0});
      }
      if (o_.dw) {
        add_head_gradient(ctx_, *o_.dw, {tile.token, tile.token + tile.tokens},
                          {logits_, kDtype, tile.tokens, true}, *o_.h,
                          {tile.row, tile.row + tile.rows});
      }
    });
    if (!sum) return;
    convert_rows(ctx_, {sum, kDtype, channels_}, {o_.dh->data, o_.dh->dtype, channels_}, rows,
                 channels_);
  }

 private:
  static constexpr int32_t kDtype = kDtypeOfAcc<A>;

  GemmInput rows_from(const View& matrix, int64_t row) const {
    return {rows_of(&matrix, row), matrix.dtype, channels_};
  }
  int64_t depth(const LogitsTile& tile) const { return tile.rows * tile.tokens / tiles_.order(); }

  // The logits of a tile; returns them with as many rows as the Gram matrix has.
  MatrixRef make(const LogitsTile& tile) {
    GemmInput w = rows_from(*o_.w, tile.token);
    w.transposed = true;
    gemm(ctx_, {tile.rows, tile.tokens, channels_}, rows_from(*o_.h, tile.row), w,
         {logits_, kDtype, tile.tokens});
    const A cap = static_cast<A>(o_.softcap);
    parallel_for(ctx_, cap > 0 ? tile.rows * tile.tokens : 0, 1 << 14,
                 [&](int64_t begin, int64_t end) {
                   at_level<&head::cap_row<A>>(logits_ + begin, end - begin, A(1), cap);
                 });
    const MatrixRef z = {logits_, kDtype, tile.tokens, 1};
    return tiles_.by_rows() ? z.transposed() : z;
  }

  // From the right the roles of rows and columns swap:
  //   dZ^T = V diag(weights) V^T Z^T + shift Z^T
  void replace_by_gradient(const LogitsTile& tile, const SvdRatio& ratio, const MatrixRef& z) {
    Matrix dz = ratio_gradient(ctx_, ratio, widened(z, tiles_.order(), depth(tile)));
    if (tiles_.by_rows()) dz = transposed(dz);
    const double inverse = o_.softcap > 0 ? 1 / o_.softcap : 0;
    parallel_for(ctx_, tile.rows * tile.tokens, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const double capped = static_cast<double>(logits_[i]) * inverse;
        logits_[i] = static_cast<A>(dz.values[static_cast<size_t>(i)] * (1 - capped * capped));
      }
    });
  }

  Context* ctx_;
  const balora_svd_ratio_tiles& o_;
  int64_t channels_;
  LogitsTiles tiles_;
  A* logits_;
};

template <typename A>
double ratio_of_tiles(Context* ctx, const balora_svd_ratio_tiles& o) {
  TiledLogits<A> logits(ctx, o);
  const Matrix gram = logits.gram();
  double norm2 = 0;  // the sum of the squares of all logits
  for (int64_t i = 0; i < gram.rows; ++i) norm2 += gram(i, i);
  const SvdRatio ratio = ratio_of_gram(ctx, gram, norm2, o.k, o.nuclear != 0);
  if (o.dh || o.dw) logits.gradient(ratio);
  return ratio.value;
}

}  // namespace

int32_t svd_ratio_tiles_kernel(Context* ctx, const balora_svd_ratio_tiles& o) {
  *data_of<double>(o.value) =
      o.h->dtype == BALORA_F64 ? ratio_of_tiles<double>(ctx, o) : ratio_of_tiles<float>(ctx, o);
  return 0;
}

}  // namespace balora
