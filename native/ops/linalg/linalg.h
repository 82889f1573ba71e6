// Matrix decompositions of 2-dimensional tensors of any float dtype. They are computed in f64 and
// rounded once; factors have the input's dtype, singular values and eigenvalues its accumulator
// type. M, N extents, K = min(M,N), R rank.
#pragma once
#include <cstdint>
#include <tuple>
#include <vector>

#include "tensor/tensor.h"

namespace balora {

// qr.cc: a (M,N) -> q (M,K), r (K,N) with a non-negative diagonal; gradient for M >= N
std::tuple<Tensor, Tensor> qr(const Tensor& a);

// eigh.cc: a (N,N) symmetric -> values (N) ascending, vectors (N,N) in columns
std::tuple<Tensor, Tensor> eigh(const Tensor& a);

// svd.cc: a (M,N) -> u (M,K), s (K) descending, vt (K,N)
std::tuple<Tensor, Tensor, Tensor> svd(const Tensor& a);
// The singular values alone: their gradient U diag(ds) Vt exists where that of the vectors does not
Tensor singular_values(const Tensor& a);

// randomized_svd.cc: each a (M,N) of the list -> u (M,R), s (R), vt (R,N) with its own rank and
// seed; niter < 0: until the captured energy has converged. No gradient: an input that
// wants one is refused.
std::vector<std::tuple<Tensor, Tensor, Tensor>> randomized_svds(const std::vector<Tensor>& matrices,
                                                                const std::vector<int64_t>& ranks,
                                                                int64_t niter, int64_t oversample,
                                                                const std::vector<int64_t>& seeds);

// gram.cc: a (N,C) -> a^T a (C,C) f64, summed in f64. No gradient.
Tensor gram(const Tensor& a);
// g (C,C) f64 += a^T a, in place
void gram_add(Tensor& g, const Tensor& a);
// m = H^T H, g = W^T W, both (C,C) f64 -> the singular values (C) f64 of H W^T, descending
Tensor gram_spectrum(const Tensor& m, const Tensor& g);

// "qr: a must have two dimensions": the check all of them share.
void check_matrix(const char* op, const Tensor& a);

}  // namespace balora
