// Many independent problems, a thread each, for problems whose steps do not fill several threads.
#pragma once
#include <atomic>
#include <cstddef>

#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora {

// Threads that side_by_side uses for so many problems.
inline size_t side_by_side_lanes(const Context* ctx, size_t count) {
  return std::min(count, static_cast<size_t>(std::max(ctx->num_threads, 1)));
}

// Calls body(context, lane, i) for each i below count, with a context of one thread; a lane that is
// done takes the next problem, unless nobody wants the results any more. What a lane throws is
// thrown here, once all have ended.
template <typename Body>
void side_by_side(const Context* ctx, size_t count, const Body& body) {
  Context single = *ctx;
  single.num_threads = 1;
  std::atomic<size_t> next = 0;
  const auto lanes = static_cast<int64_t>(side_by_side_lanes(ctx, count));
  parallel_for(ctx, lanes, 1, [&](int64_t begin, int64_t end) {
    for (auto lane = static_cast<size_t>(begin); lane < static_cast<size_t>(end); ++lane) {
      for (size_t i = next++; i < count && !is_stopped(ctx); i = next++) body(&single, lane, i);
    }
  });
}

}  // namespace balora
