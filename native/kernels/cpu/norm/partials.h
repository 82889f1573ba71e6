// Sums over rows of which each thread has a part.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace balora {

// total (C) = the sum of the threads' partial rows (threads,C), in the order of the threads.
template <typename A>
void sum_partials(const std::vector<A>& partial, int64_t channels, A* total) {
  std::fill_n(total, channels, A(0));
  for (size_t i = 0; i < partial.size(); ++i) {
    total[i % static_cast<size_t>(channels)] += partial[i];
  }
}

}  // namespace balora
