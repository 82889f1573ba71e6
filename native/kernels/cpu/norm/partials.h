// Loops over rows that are shared out among threads, and sums over them.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/cpu/runtime/parallel.h"

namespace balora {

constexpr int64_t kNormGrain = 16;  // rows

// Calls body(sums, begin, end) for ranges of rows, of which each has `count` zeros of its own to
// add to; returns the sums in the order of the ranges. With a count of 0 they are null.
template <typename A, typename Body>
std::vector<A> sum_over_rows(Context* ctx, int64_t rows, int64_t count, const Body& body) {
  std::vector<A> total(static_cast<size_t>(count), A(0));
  if (count == 0) {
    share_out(ctx, rows, kNormGrain,
              [&](int64_t begin, int64_t end) { body(static_cast<A*>(nullptr), begin, end); });
    return total;
  }
  const int width = parallel_width(ctx, rows, kNormGrain);
  std::vector<A> partial(static_cast<size_t>(width * count), A(0));
  parallel_for(ctx, width, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      body(partial.data() + part * count, rows * part / width, rows * (part + 1) / width);
    }
  });
  for (size_t i = 0; i < partial.size(); ++i) total[i % total.size()] += partial[i];
  return total;
}

}  // namespace balora
