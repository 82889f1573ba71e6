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

// The problems, of which some are still to be solved in f64.
class Tasks {
 public:
  Tasks(Context* ctx, std::span<const LowRankProblem> problems, const StoreSvd& store)
      : ctx_(ctx), problems_(problems), store_(store), done_(problems.size(), 0) {}

  // One problem after the other, with all threads.
  void in_turn(const std::vector<size_t>& which, void* scratch) {
    for (const size_t i : which) {
      if (!is_stopped(ctx_)) attempt(ctx_, i, scratch);
    }
  }

  // Each with one thread; a thread that is done takes the next.
  void side_by_side(const std::vector<size_t>& which, const std::vector<void*>& scratch) {
    balora::side_by_side(ctx_, which.size(), [&](const Context* single, size_t lane, size_t i) {
      attempt(single, which[i], scratch[lane]);
    });
  }

  void finish() {
    for (size_t i = 0; i < problems_.size(); ++i) {
      if (!done_[i] && !is_stopped(ctx_)) store_(i, exact_svd(ctx_, problems_[i]));
    }
  }

 private:
  void attempt(const Context* ctx, size_t i, void* scratch) {
    SvdResult result;
    if (chebyshev_svd(ctx, problems_[i], scratch, &result) != SvdOutcome::kDone) return;
    store_(i, result);
    done_[i] = 1;
  }

  Context* ctx_;
  std::span<const LowRankProblem> problems_;
  const StoreSvd& store_;
  std::vector<char> done_;
};

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
  Tasks tasks(ctx, problems, store);
  if (!large.empty()) tasks.in_turn(large, workspace<char>(ctx, large_bytes));
  const size_t lanes = side_by_side_lanes(ctx, small.size());
  std::vector<void*> scratch;
  for (size_t lane = 0; lane < lanes; ++lane) scratch.push_back(workspace<char>(ctx, small_bytes));
  if (lanes) tasks.side_by_side(small, scratch);
  tasks.finish();
}

}  // namespace balora
