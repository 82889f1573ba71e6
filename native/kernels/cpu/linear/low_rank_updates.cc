#include "kernels/cpu/linear/low_rank_updates.h"

#include <algorithm>

#include "kernels/cpu/linear/kept_factors.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

// Change over start, in norms, up to which a pair is written by its change: what is lost is then
// below 2^-11 of the factors. Beyond it the pair no longer is what the form was made for.
constexpr double kLargestChange = 0.25;

struct Norms {
  double change = 0, start = 0;  // squared
};

template <typename E>
BALORA_INLINE Norms norms(const E* x, const E* start, int64_t count) {
  E change = 0, whole = 0;
#pragma omp simd reduction(+ : change, whole)
  for (int64_t i = 0; i < count; ++i) {
    const E d = x[i] - start[i];
    change += d * d, whole += start[i] * start[i];
  }
  return {change, whole};
}

// In blocks that do not depend on the number of threads.
template <typename E>
bool is_close(Context* ctx, const View& x, const View& start) {
  constexpr int64_t kBlock = 8192;
  const int64_t count = view_numel(x), blocks = (count + kBlock - 1) / kBlock;
  std::vector<Norms> parts(static_cast<size_t>(blocks));
  parallel_for(ctx, blocks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kBlock;
      parts[static_cast<size_t>(b)] = at_level<&norms<E>>(
          data_of<E>(&x) + first, data_of<E>(&start) + first, std::min(kBlock, count - first));
    }
  });
  Norms all;
  for (const Norms& part : parts) all.change += part.change, all.start += part.start;
  return all.change <= kLargestChange * kLargestChange * all.start;  // false for NaN
}

// Once for the values that the factor has: a step of the optimiser makes others.
bool is_close(Context* ctx, const View& x, const View& start) {
  return kept_fact(x, start, [&] {
    return x.dtype == BALORA_F64 ? is_close<double>(ctx, x, start) : is_close<float>(ctx, x, start);
  });
}

}  // namespace

std::vector<LowRankUpdate> low_rank_updates_of(Context* ctx, const LinearOperands& linear) {
  std::vector<LowRankUpdate> updates;
  for (const LowRankOperands& part : parts_of(linear)) {
    if (part.a->shape[0] == 0) continue;
    LowRankUpdate update = {.a = part.a,
                            .b = part.b,
                            .start_a = part.start_a,
                            .start_b = part.start_b,
                            .scale = part.scale,
                            .change_as_it_stands = part.is_change != 0,
                            .u = part.u,
                            .da = part.da,
                            .db = part.db};
    if (!part.start_a ||
        (is_close(ctx, *part.a, *part.start_a) && is_close(ctx, *part.b, *part.start_b))) {
      updates.push_back(update);
      continue;
    }
    update.start_a = update.start_b = nullptr;
    updates.push_back(update);
    updates.push_back({.a = part.start_a, .b = part.start_b, .scale = -part.scale});
  }
  return updates;
}

}  // namespace balora
