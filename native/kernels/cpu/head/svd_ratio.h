// The SVD regularizer L = -(sum of the k largest singular values of Z) / F, F the Frobenius or the
// nuclear norm of Z, from the eigenvalues of a Gram matrix of Z. Its gradient is
//   dL/dZ = U diag(weights) U^T Z + shift Z
// over left singular vectors (the same from the right: Z V diag(weights) V^T + shift Z), weights_i
// = (dL/dsigma_i)/sigma_i without the Frobenius norm's part, which is the shift.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/cpu/linalg/krylov.h"

namespace balora {

struct SvdRatio {
  double value = 0;             // 0 for Z = 0
  std::vector<double> weights;  // one per eigenpair given
  double shift = 0;
};

// `squares`: eigenvalues of Z Z^T, descending: at least min(k, rank) of them, all for the nuclear
// norm. Singular values up to 1e-6 of the largest carry no gradient: the smallest-norm subgradient
// where k exceeds the numerical rank.
SvdRatio svd_ratio(const std::vector<double>& squares, double squared_norm, int64_t k,
                   bool nuclear);

// Eigenpairs that svd_ratio needs of an explicit Gram matrix: the k leading, or all
// for the nuclear norm.
RitzPairs ratio_eigenpairs(const Context* ctx, const Matrix& gram, int64_t k, bool nuclear);

// out (n,C) = U diag(weights) (U^T p) + shift p
Matrix ratio_gradient(const Context* ctx, const Matrix& u, const SvdRatio& ratio, const Matrix& p);

}  // namespace balora
