// Low-rank SVDs of any number of matrices: the quick way (quick_svd.h) where shape and numbers
// allow it, else in f64 (krylov.h). Matrices share the threads out among them.
#pragma once
#include <span>

#include "kernels/cpu/quick_svd.h"

namespace balora {

struct LowRankTask {
  QuickProblem problem;
  SvdResult result = {};
};

void low_rank_svds(Context* ctx, std::span<LowRankTask> tasks);

}  // namespace balora
