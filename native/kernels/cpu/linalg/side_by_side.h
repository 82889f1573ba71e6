// Many independent problems, a thread each, for problems whose steps do not fill several threads.
#pragma once
#include <atomic>
#include <cstddef>
#include <exception>
#include <vector>

#include "kernels/cpu/runtime/parallel.h"

namespace balora {

// Threads that side_by_side uses for so many problems.
inline size_t side_by_side_lanes(const Context* ctx, size_t count) {
  return std::min(count, static_cast<size_t>(std::max(ctx->num_threads, 1)));
}

// Calls body(context, lane, i) for each i below count, with a context of one thread; a lane that is
// done takes the next problem. Throws what a lane threw, once all have ended.
template <typename Body>
void side_by_side(const Context* ctx, size_t count, const Body& body) {
  Context single = *ctx;
  single.num_threads = 1;
  std::atomic<size_t> next = 0;
  std::vector<std::exception_ptr> failures(side_by_side_lanes(ctx, count));
  parallel_for(ctx, static_cast<int64_t>(failures.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto lane = static_cast<size_t>(begin); lane < static_cast<size_t>(end); ++lane) {
      try {
        for (size_t i = next++; i < count; i = next++) body(&single, lane, i);
      } catch (...) {
        failures[lane] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace balora
