#include "kernels/cpu/low_rank_svds.h"

#include <algorithm>
#include <exception>
#include <new>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/krylov.h"
#include "kernels/cpu/parallel.h"

namespace balora {
namespace {

SvdResult exact_svd(const Context* ctx, const QuickProblem& p) {
  const MatrixRef a{p.w.data, p.w.dtype, p.w.cols, 1};
  return p.niter < 0
             ? converged_svd(ctx, a, p.w.rows, p.w.cols, p.rank, p.oversample, p.seed)
             : randomized_svd(ctx, a, p.w.rows, p.w.cols, p.rank, p.niter, p.oversample, p.seed);
}

void* workspace(Context* ctx, int64_t bytes) {
  void* memory = ctx->workspace(ctx, static_cast<uint64_t>(bytes));
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

void low_rank_svds(Context* ctx, std::span<LowRankTask> tasks) {
  const auto count = static_cast<int64_t>(tasks.size());
  std::vector<char> done(tasks.size(), 0);
  int64_t bytes = 0;
  for (const LowRankTask& task : tasks) {
    if (quick_svd_fits(task.problem)) bytes = std::max(bytes, quick_svd_bytes(task.problem));
  }
  // Several matrices: one a thread, so that nothing waits for anything.
  const int64_t lanes = std::min<int64_t>(std::max(ctx->num_threads, 1), count);
  Context inner = *ctx;
  if (lanes > 1) inner.num_threads = 1;
  std::vector<void*> scratch;
  for (int64_t lane = 0; bytes && lane < lanes; ++lane) scratch.push_back(workspace(ctx, bytes));
  std::vector<std::exception_ptr> failures(static_cast<size_t>(lanes));
  parallel_for(ctx, lanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end; ++lane) {
      try {
        for (int64_t i = lane; i < count; i += lanes) {
          LowRankTask& task = tasks[static_cast<size_t>(i)];
          if (!quick_svd_fits(task.problem)) continue;
          done[static_cast<size_t>(i)] =
              quick_svd(&inner, task.problem, scratch[static_cast<size_t>(lane)], &task.result) ==
              QuickOutcome::kDone;
        }
      } catch (...) {
        failures[static_cast<size_t>(lane)] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (!done[i]) tasks[i].result = exact_svd(ctx, tasks[i].problem);
  }
}

}  // namespace balora
