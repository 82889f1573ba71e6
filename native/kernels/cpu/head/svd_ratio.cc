#include "kernels/cpu/head/svd_ratio.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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

}  // namespace balora
