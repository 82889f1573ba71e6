// Leading eigenpairs of a large symmetric positive semidefinite operator by block Krylov iteration
// with thick restart: the device's side of kernels/cpu/linalg/krylov.h, and the steps of it that
// read nothing on the host, which leading_pairs.cu goes through as well. The basis is f64, stays on
// the device and is fully reorthogonalised; in block_krylov() the host reads the Ritz values
// once a cycle.
#pragma once
#include <functional>
#include <vector>

#include "kernels/shared/krylov.h"
#include "linalg/dense.cuh"

namespace balora::cuda {

// A matrix that grows by columns: storage for `capacity` of them, `cols` in use.
struct Basis {
  Basis(Scratch& scratch, int64_t n, int64_t capacity) : storage(scratch, n, capacity) {}
  Factor factor(bool transposed = false) const {
    return {storage.data(), storage.cols, transposed};
  }
  void append(Context* ctx, const Dense& block);
  Dense storage;
  int64_t cols = 0;
};

// A copy of the first `count` columns.
Dense leading_columns(Scratch& scratch, const Dense& a, int64_t count);
// block -= Q Q^T block
void project_out(Scratch& scratch, const Basis& q, const Dense& block);

// Leading pairs of an operator A within a basis, on the device: values (K,1) descending, vectors
// (n,K), images = A vectors, rest = images - vectors diag(values).
struct Ritz {
  Dense values, vectors, images, rest;
};
// aq = A q; at most `keep` pairs. Reads nothing on the host.
Ritz ritz(Scratch& scratch, const Basis& q, const Basis& aq, int64_t keep, const char* row);
// (K,1): the length of each column of rest.
Dense residual_lengths(Scratch& scratch, const Ritz& found);

using RitzPairs = RitzPairsOf<Dense>;

// y = A x, x and y (n, any).
using ApplyFn = std::function<Dense(const Dense& x)>;
// Asked after each Rayleigh-Ritz step.
using ConvergedFn = std::function<bool(const RitzPairs&)>;

// Returns the last Ritz pairs; *converged says whether the test held. `row` is named in a failure.
RitzPairs block_krylov(Scratch& scratch, int64_t n, const KrylovOptions& options,
                       const ApplyFn& apply, const ConvergedFn& test, bool* converged,
                       const char* row);

// Standard normals that depend on (seed, index) only, from the words of philox.h; within rounding
// of log, sin and cos they are the CPU's.
Dense normal_matrix(Scratch& scratch, int64_t rows, int64_t cols, uint64_t seed);

}  // namespace balora::cuda
