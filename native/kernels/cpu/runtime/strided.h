// Loops over strided views of one shape. A plan merges dimensions that every operand walks evenly,
// so that contiguous operands become one long row and a broadcast row or scalar becomes a row with
// stride 0; for_each_row() then shares the rows among threads and hands each to
// a one-dimensional loop.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/cpu/runtime/parallel.h"
#include "tensor/view.h"

namespace balora {

template <int K>
struct LoopPlan {
  int ndim = 0;  // at least 1
  std::array<int64_t, BALORA_MAX_DIMS> shape{};
  std::array<std::array<int64_t, K>, BALORA_MAX_DIMS> stride{};

  int64_t row_length() const { return shape[static_cast<size_t>(ndim - 1)]; }
  const std::array<int64_t, K>& row_stride() const { return stride[static_cast<size_t>(ndim - 1)]; }
};

// All views have the same shape (broadcast operands carry stride 0).
template <int K>
LoopPlan<K> plan_loops(const std::array<const View*, K>& views) {
  LoopPlan<K> plan;
  const View& first = *views[0];
  for (int32_t d = 0; d < first.ndim; ++d) {
    if (first.shape[d] == 1) continue;
    std::array<int64_t, K> stride;
    for (size_t k = 0; k < K; ++k) stride[k] = views[k]->stride[d];
    bool merges = plan.ndim > 0;
    if (merges) {
      const auto& outer = plan.stride[static_cast<size_t>(plan.ndim - 1)];
      for (size_t k = 0; k < K; ++k) merges = merges && outer[k] == stride[k] * first.shape[d];
    }
    if (!merges) ++plan.ndim;
    const auto last = static_cast<size_t>(plan.ndim - 1);
    plan.shape[last] = merges ? plan.shape[last] * first.shape[d] : first.shape[d];
    plan.stride[last] = stride;
  }
  if (plan.ndim == 0) {
    plan.ndim = 1;
    plan.shape[0] = 1;
    plan.stride[0].fill(1);
  }
  return plan;
}

// Calls row(offsets, n) for chunks of at most kRowChunk elements of the innermost dimension;
// offsets are in elements. The chunks do not depend on the number of threads.
template <int K, typename Row>
void for_each_row(const Context* ctx, const LoopPlan<K>& plan, const Row& row) {
  constexpr int64_t kRowChunk = 1 << 14;
  const int64_t length = plan.row_length();
  int64_t rows = 1;
  for (int d = 0; d + 1 < plan.ndim; ++d) rows *= plan.shape[static_cast<size_t>(d)];
  if (rows == 0 || length == 0) return;
  const int64_t chunks = (length + kRowChunk - 1) / kRowChunk;
  const int64_t grain = std::max<int64_t>(1, kRowChunk / std::min(length, kRowChunk));
  parallel_for(ctx, rows * chunks, grain, [&](int64_t begin, int64_t end) {
    std::array<int64_t, BALORA_MAX_DIMS> index{};
    std::array<int64_t, K> base{};
    int64_t rest = begin / chunks, chunk = begin % chunks;
    for (int d = plan.ndim - 2; d >= 0; --d) {
      const auto at = static_cast<size_t>(d);
      index[at] = rest % plan.shape[at];
      rest /= plan.shape[at];
      for (size_t k = 0; k < K; ++k) base[k] += index[at] * plan.stride[at][k];
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = chunk * kRowChunk;
      std::array<int64_t, K> offsets;
      for (size_t k = 0; k < K; ++k) offsets[k] = base[k] + from * plan.row_stride()[k];
      row(offsets, std::min(kRowChunk, length - from));
      if (++chunk < chunks) continue;
      chunk = 0;
      for (int d = plan.ndim - 2; d >= 0; --d) {  // the next row, like an odometer
        const auto at = static_cast<size_t>(d);
        for (size_t k = 0; k < K; ++k) base[k] += plan.stride[at][k];
        if (++index[at] < plan.shape[at]) break;
        for (size_t k = 0; k < K; ++k) base[k] -= plan.stride[at][k] * plan.shape[at];
        index[at] = 0;
      }
    }
  });
}

}  // namespace balora
