// Folds the middle of a contiguous (A,R,C) into (A,C) for any state that takes elements in and
// merges with its like. R is cut into pieces whose number depends on the shape alone; a group of
// threads (C = 1) or a block (32 columns side by side) leaves one state a piece, and what finishes
// the result merges the pieces in order. Every element is read once, 16 bytes at a time where C = 1
// and coalesced elsewhere, and the order of merging is fixed.
//
// A fold has T, State, start(o) for result o, add(state, x, r) and merge(state, later state).
#pragma once
#include "device/rows.cuh"

namespace balora::cuda {

struct Extent {
  int64_t outer, rows, inner;
  int64_t length, pieces;  // rows a piece
  __host__ __device__ int64_t results() const { return outer * inner; }
};

inline Extent extent_of(const View* x) {
  constexpr int64_t kMaxPieces = 256;
  const int64_t rows = x->shape[1], inner = x->shape[2];
  const int64_t least = inner == 1 ? 1 << 14 : 512;
  const int64_t length = std::max(least, ceil_div(rows, kMaxPieces));
  return {x->shape[0], rows, inner, length, std::max<int64_t>(1, ceil_div(rows, length))};
}

// The states of a group's threads merged into that of its first; `states` is the block's.
template <typename Fold>
__device__ inline void fold_group(const Fold& fold, const RowTask& task, const Group& group,
                                  typename Fold::State* states) {
  typename Fold::State* mine = states + (task.warp_rows ? threadIdx.x - group.lane : 0);
  for (int n = group.threads; n > 1; n = (n + 1) / 2) {
    if (task.warp_rows) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    if (group.lane < n / 2) fold.merge(mine[group.lane], mine[group.lane + (n + 1) / 2]);
  }
}

constexpr int kFoldBatch = 4;  // 16-byte pieces a thread asks for at once

// C = 1: a group a piece of a row. partial (pieces,A)
template <typename Fold>
__global__ void __launch_bounds__(kRowThreads, 1)
    fold_rows(Fold fold, const typename Fold::T* x, Extent e, RowTask task,
              typename Fold::State* partial) {
  using T = typename Fold::T;
  BALORA_SHARED(typename Fold::State, states, kRowThreads);
  const Group group = group_of(task);
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const int64_t a = n / e.pieces, from = n % e.pieces * e.length;
    const T* at = x + a * e.rows + from;
    const Cut<T> cut = Cut<T>::aligned(at, static_cast<int32_t>(min(e.length, e.rows - from)));
    const Row<const T> row = cut.row(at);
    typename Fold::State state = fold.start(a);
    for (int32_t i = group.lane; i < cut.pieces(); i += kFoldBatch * group.threads) {
      Piece<T> batch[kFoldBatch];
      BALORA_UNROLL
      for (int k = 0; k < kFoldBatch; ++k) {
        batch[k] = row.get(cut.first(i + k * group.threads), T{});
      }
      BALORA_UNROLL
      for (int k = 0; k < kFoldBatch; ++k) {
        const int32_t first = cut.first(i + k * group.threads);
        BALORA_UNROLL
        for (int j = 0; j < kPackOf<T>; ++j) {
          const bool inside = first + j >= 0 && first + j < cut.size;
          if (inside) fold.add(state, batch[k][j], from + first + j);
        }
      }
    }
    states[threadIdx.x] = state;
    fold_group(fold, task, group, states);
    if (group.lane == 0) partial[n % e.pieces * e.outer + a] = states[threadIdx.x];
    if (task.warp_rows) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
}

constexpr int kFoldThreads = 256;

// C > 1: a block `columns` (a power of two up to 32) columns of a piece. partial (pieces,A,C)
template <typename Fold>
__global__ void __launch_bounds__(kFoldThreads)
    fold_columns(Fold fold, const typename Fold::T* x, Extent e, int32_t columns,
                 typename Fold::State* partial) {
  BALORA_SHARED(typename Fold::State, states, kFoldThreads);
  const int64_t tiles = (e.inner + columns - 1) / columns;
  const int column = threadIdx.x % columns, part = threadIdx.x / columns;
  const int parts = kFoldThreads / columns;
  for (int64_t block = blockIdx.x; block < e.outer * e.pieces * tiles; block += gridDim.x) {
    const int64_t c = block % tiles * columns + column, piece = block / tiles % e.pieces;
    const int64_t a = block / tiles / e.pieces, last = min(e.rows, (piece + 1) * e.length);
    const bool inside = c < e.inner;
    typename Fold::State state = fold.start(inside ? a * e.inner + c : 0);
    for (int64_t r = piece * e.length + part; inside && r < last; r += parts) {
      fold.add(state, load(x[(a * e.rows + r) * e.inner + c]), r);
    }
    states[threadIdx.x] = state;
    for (int n = parts; n > 1; n /= 2) {
      __syncthreads();
      if (part < n / 2) fold.merge(states[threadIdx.x], states[threadIdx.x + n / 2 * columns]);
    }
    if (part == 0 && inside) {
      partial[piece * e.results() + a * e.inner + c] = states[threadIdx.x];
    }
    __syncthreads();
  }
}

// partial (pieces,A,C), in scratch.
template <typename Fold>
typename Fold::State* fold_middle(Context* ctx, const char* name, const Fold& fold,
                                  const typename Fold::T* x, const Extent& e) {
  using T = typename Fold::T;
  auto* partial = workspace<typename Fold::State>(ctx, e.pieces * e.results());
  if (e.results() == 0) return partial;
  if (e.inner == 1) {
    const RowPlan plan =
        plan_rows<T>(name, e.outer * e.pieces, std::min(e.length, e.rows), kFoldBatch);
    launch(ctx, name, plan.grid, fold_rows<Fold>, fold, x, e, plan.task, partial);
    return partial;
  }
  int32_t columns = 2;
  while (columns < kWarp && columns < e.inner) columns *= 2;
  const int64_t blocks = e.outer * e.pieces * ceil_div(e.inner, columns);
  const Grid grid{dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks))), dim3(kFoldThreads)};
  launch(ctx, name, grid, fold_columns<Fold>, fold, x, e, columns, partial);
  return partial;
}

// The state of result o over its pieces, in their order.
template <typename Fold>
__device__ inline typename Fold::State merged(const Fold& fold, const typename Fold::State* partial,
                                              int64_t results, int64_t pieces, int64_t o) {
  typename Fold::State state = partial[o];
  for (int64_t p = 1; p < pieces; ++p) fold.merge(state, partial[p * results + o]);
  return state;
}

}  // namespace balora::cuda
