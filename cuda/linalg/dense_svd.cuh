// Thin singular value decomposition on the device.
#pragma once
#include "linalg/dense.cuh"

namespace balora::cuda {

struct SvdFactors {
  Dense u;   // (M,K)
  Dense s;   // (K,1), descending
  Dense vt;  // (K,N)
};

// a (M,N), K = min(M,N); u and vt are empty without `vectors`. Waits for the device where a is not
// square and for the vectors (qr.cuh). NaN or infinity: everything becomes NaN and synchronize()
// reports it in the name of `row`.
SvdFactors thin_svd(Scratch& scratch, const Dense& a, bool vectors, const char* row = "svd");

}  // namespace balora::cuda
