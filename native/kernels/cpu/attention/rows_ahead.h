// Rows that are asked for before they are used.
#pragma once
#include <algorithm>
#include <array>

#include "kernels/cpu/attention/attention_tiles.h"

namespace balora::attention {

// The rows that a tile of queries writes at its end, and those that the next one reads first. They
// lie apart, which no hardware prefetcher follows: a part of them is asked for before each product,
// so that few wait for memory at a time. They go to the second-level cache: the products need all
// of the first.
template <typename T>
class RowsAhead {
 public:
  // `products`: in how many parts.
  explicit RowsAhead(int64_t products) : step_((kTile + products - 1) / products) {}

  void add(const Source<T>& source) { sources_[count_++] = source; }

  void ask() {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
    for (size_t source = 0; source < count_; ++source) {
      const Source<T>& s = sources_[source];
      for (int64_t i = next_; i < std::min(next_ + step_, s.rows); ++i) {
        const T* row = s.data + i * s.stride;
        for (int64_t c = 0; c < s.size; c += kLine) __builtin_prefetch(row + c, 0, 2);
      }
    }
    next_ += step_;
  }

 private:
  std::array<Source<T>, 6> sources_;
  size_t count_ = 0;
  int64_t step_, next_ = 0;
};

}  // namespace balora::attention
