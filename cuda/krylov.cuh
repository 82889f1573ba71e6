// Leading eigenpairs of a large symmetric positive semidefinite operator by block Krylov iteration
// with thick restart: the device's side of kernels/cpu/krylov.h. The basis is f64, stays on the
// device and is fully reorthogonalised; the host reads the Ritz values once a cycle.
#pragma once
#include <functional>
#include <vector>

#include "dense.cuh"

namespace balora::cuda {

struct RitzPairs {
  std::vector<double> values;     // descending
  std::vector<double> residuals;  // |A v - value v| of each pair
  Dense vectors;                  // (n, values.size()), orthonormal columns
  bool exact = false;             // the basis spans the whole space
};

struct KrylovOptions {
  int64_t block;       // columns of a block = pairs kept at a restart; a few more than are wanted
  int64_t blocks = 4;  // blocks added between restarts
  int max_cycles = 60;
  uint64_t seed = 0;  // of the starting block
};

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
