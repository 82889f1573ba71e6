#include "kernels/cpu/linalg/low_rank_svds.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/linalg/krylov.h"
#include "kernels/cpu/linalg/side_by_side.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

constexpr int64_t kSmallScratch = 64 << 20;  // bytes, of a matrix that one thread takes

SvdResult exact_svd(const Context* ctx, const LowRankProblem& p) {
  const MatrixRef a{p.w.data, p.w.dtype, p.w.cols, 1};
  return p.niter < 0
             ? converged_svd(ctx, a, p.w.rows, p.w.cols, p.rank, p.oversample, p.seed)
             : randomized_svd(ctx, a, p.w.rows, p.w.cols, p.rank, p.niter, p.oversample, p.seed);
}

}  // namespace

void low_rank_svds(Context* ctx, std::span<const LowRankProblem> problems, const StoreSvd& store) {
  std::vector<size_t> small, large;
  int64_t small_bytes = 0, large_bytes = 0;
  for (size_t i = 0; i < problems.size(); ++i) {
    if (!chebyshev_svd_fits(problems[i])) continue;
    const int64_t bytes = chebyshev_svd_bytes(problems[i]);
    const bool alone = bytes > kSmallScratch || problems.size() == 1;
    (alone ? large : small).push_back(i);
    int64_t& most = alone ? large_bytes : small_bytes;
    most = std::max(most, bytes);
  }
  std::vector<char> done(problems.size(), 0);
  const auto attempt = [&](const Context* with, void* scratch, size_t i) {
    SvdResult result;
    if (chebyshev_svd(with, problems[i], scratch, &result) != SvdOutcome::kDone) return;
    store(i, result);
    done[i] = 1;
  };
  void* scratch = large.empty() ? nullptr : workspace<char>(ctx, large_bytes);
  for (const size_t i : large) {
    if (!is_stopped(ctx)) attempt(ctx, scratch, i);
  }
  side_by_side(ctx, small.size(), small_bytes,
               [&](const Context* single, void* own, size_t i) { attempt(single, own, small[i]); });
  for (size_t i = 0; i < problems.size(); ++i) {
    if (!done[i] && !is_stopped(ctx)) store(i, exact_svd(ctx, problems[i]));
  }
}

}  // namespace balora
