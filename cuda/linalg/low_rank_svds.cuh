// The leading singular triplets of one matrix, as the row randomized_svds finds them.
#pragma once
#include "linalg/dense_svd.cuh"

namespace balora::cuda {

struct LowRankSearch {
  int64_t rank;
  int64_t niter;  // power iterations; negative: until the captured energy has converged
  int64_t oversample;
  uint64_t seed;
};

// At least search.rank triplets of a contiguous matrix (M,N) of floats. Waits for the device.
SvdFactors leading_triplets(Scratch& scratch, const View& a, const LowRankSearch& search);

}  // namespace balora::cuda
