// Low-rank SVDs of any number of matrices: the fast way (chebyshev_svd.h) where shape and numbers
// allow it, else in f64 (krylov.h). Threads take small matrices whole, one after the other, since
// the steps of one do not fill several; large ones and those that end in f64 have all threads. A
// result depends on its matrix alone: neither on the thread count nor on what else is asked for.
#pragma once
#include <functional>
#include <span>

#include "kernels/cpu/linalg/chebyshev_svd.h"

namespace balora {

// Called once for each problem, on any thread, in no order; for none that nobody wants any more.
using StoreSvd = std::function<void(size_t index, const SvdResult& result)>;

void low_rank_svds(Context* ctx, std::span<const LowRankProblem> problems, const StoreSvd& store);

}  // namespace balora
