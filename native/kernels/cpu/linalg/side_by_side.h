// Many independent problems, a thread each, for problems whose steps do not fill several threads.
#pragma once
#include <atomic>
#include <cstddef>

#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {

// Calls body(context, scratch, i) for each i below count, with a context of one thread and so many
// bytes of its own; a lane that is done takes the next problem, unless nobody wants the results any
// more. What a lane throws is thrown here, once all have ended.
template <typename Body>
void side_by_side(Context* ctx, size_t count, int64_t bytes, const Body& body) {
  Context single = *ctx;
  single.num_threads = 1;
  std::atomic<size_t> next = 0;
  const int64_t lanes =
      std::min(static_cast<int64_t>(count), std::max<int64_t>(ctx->num_threads, 1));
  char* scratch = bytes > 0 && lanes > 0 ? workspace<char>(ctx, lanes * bytes) : nullptr;
  parallel_for(ctx, lanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end; ++lane) {
      for (size_t i = next++; i < count && !is_stopped(ctx); i = next++) {
        body(&single, scratch + lane * bytes, i);
      }
    }
  });
}

}  // namespace balora
