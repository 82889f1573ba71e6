// Settings and stopping rules of block Krylov iterations, which run on the host for every device.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace balora {

struct KrylovOptions {
  int64_t block;       // columns of a block = pairs kept at a restart; a few more than are wanted
  int64_t blocks = 4;  // blocks added between restarts
  int max_cycles = 60;
  uint64_t seed = 0;  // of the starting block
};

// Leading pairs of an operator A within the iteration's basis.
template <typename Matrix>
struct RitzPairsOf {
  std::vector<double> values;     // descending
  Matrix vectors;                 // (n, values.size()), orthonormal columns
  std::vector<double> residuals;  // |A v - value v| of each pair
  bool exact = false;             // the basis spans the whole space
};

// Convergence of the energy that `rank` leading pairs of A^T A capture, asked after each cycle:
//   |A - U S Vt|_F <= optimum * (1 + 1e-5) + 1e-6 * |A|_F
class CapturedEnergy {
 public:
  // total: |A|_F^2
  CapturedEnergy(int64_t rank, double total) : rank_(rank), total_(total) {}

  bool converged(const std::vector<double>& values) {
    double energy = 0;
    for (int64_t i = 0; i < rank_; ++i) energy += values[static_cast<size_t>(i)];
    const double last = captured_, last_gain = gain_;
    captured_ = energy;
    if (last < 0) return false;
    gain_ = energy - last;
    if (last_gain < 0) return gain_ <= 0;
    // The energy that geometric convergence at this ratio leaves uncaptured, against a
    // third of the tolerance.
    const double ratio = std::clamp(gain_ / last_gain, 0.0, 0.95);
    const double error = std::sqrt(std::max(0.0, 1 - energy / total_));
    const double allowed = 2 * error * (1e-5 * error + 1e-6) * total_ + 1e-12 * total_;
    return gain_ * ratio / (1 - ratio) <= allowed / 3;
  }

 private:
  int64_t rank_;
  double total_;
  double captured_ = -1, gain_ = -1;  // none yet
};

}  // namespace balora
