// Many independent problems, a thread each, for problems whose steps do not fill several threads.
#pragma once
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
  const auto n = static_cast<int64_t>(count);
  const int64_t needed = n > 0 ? parallel_width(ctx, n, 1) * bytes : 0;
  char* scratch = needed > 0 ? workspace<char>(ctx, needed) : nullptr;
  share_out(ctx, n, 1, [&](int64_t begin, int64_t end, int self) {
    for (int64_t i = begin; i < end && !is_stopped(ctx); ++i) {
      body(&single, scratch + self * bytes, static_cast<size_t>(i));
    }
  });
}

}  // namespace balora
