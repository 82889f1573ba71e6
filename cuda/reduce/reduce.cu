// Reductions over the middle of a contiguous (A,R,C) -> (A,C) (kernels/cpu/reduce/reduce.cc), as
// folds. Sums run in f64 whatever the dtype: a conversion and an addition an element,
// which keeps up with memory in bf16 on GPUs with full f64 units (3.6e12 conversions/s of an H100
// against 1.7e12 elements/s) and costs others about a factor of two. A vocabulary-long logsumexp
// finds maximum and sum in one read, single exponentials in f32, everything that is added or scaled
// again in f64, so its error does not grow with R. Each forward moves size bytes an element (the
// variance twice that: the mean first), reduce_backward 2 * size.
#include "device/rows.cuh"
#include "kernels/shared/op_codes.h"

namespace balora::cuda {
namespace {

// ---- Folds --------------------------------------------------------------------------------------
// Folds the middle of a contiguous (A,R,C) into (A,C) for any state that takes elements in and
// merges with its like. R is cut into chunks whose number depends on the shape alone; a group of
// threads (C = 1) or a block (32 columns side by side) leaves one state a chunk, and what finishes
// the result merges the chunks in order. Every element is read once, 16 bytes at a time where C = 1
// and coalesced elsewhere, and the order of merging is fixed.
//
// A fold has T, State, start(o) for result o, add(state, x, r) and merge(state, later state).

struct Extent {
  int64_t outer, rows, inner;
  int64_t length, chunks;  // rows a chunk
  __host__ __device__ int64_t results() const { return outer * inner; }
};

inline Extent extent_of(const View* x) {
  constexpr int64_t kMaxChunks = 256;
  const int64_t rows = x->shape[1], inner = x->shape[2];
  const int64_t least = inner == 1 ? 1 << 14 : 512;
  const int64_t length = std::max(least, ceil_div(rows, kMaxChunks));
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

constexpr int kFoldBatch = 4;  // 16-byte packets a thread asks for at once

// C = 1: a group a chunk of a row. partial (chunks,A)
template <typename Fold>
__global__ void __launch_bounds__(kRowThreads, 1)
    fold_rows(Fold fold, const typename Fold::T* x, Extent e, RowTask task,
              typename Fold::State* partial) {
  using T = typename Fold::T;
  BALORA_SHARED(typename Fold::State, states, kRowThreads);
  const Group group = group_of(task);
  for (int64_t n = group.index; n < task.rows; n += task.groups) {
    const int64_t a = n / e.chunks, from = n % e.chunks * e.length;
    const T* at = x + a * e.rows + from;
    const Cut<T> cut = Cut<T>::aligned(at, static_cast<int32_t>(min(e.length, e.rows - from)));
    const Row<const T> row = cut.row(at);
    typename Fold::State state = fold.start(a);
    for (int32_t i = group.lane; i < cut.packets(); i += kFoldBatch * group.threads) {
      Packet<T> batch[kFoldBatch];
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
    if (group.lane == 0) partial[n % e.chunks * e.outer + a] = states[threadIdx.x];
    if (task.warp_rows) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
}

constexpr int kFoldThreads = 256;

// C > 1: a block `columns` (a power of two up to 32) columns of a chunk. partial (chunks,A,C)
template <typename Fold>
__global__ void __launch_bounds__(kFoldThreads)
    fold_columns(Fold fold, const typename Fold::T* x, Extent e, int32_t columns,
                 typename Fold::State* partial) {
  BALORA_SHARED(typename Fold::State, states, kFoldThreads);
  const int64_t tiles = (e.inner + columns - 1) / columns;
  const int column = threadIdx.x % columns, part = threadIdx.x / columns;
  const int parts = kFoldThreads / columns;
  for (int64_t block = blockIdx.x; block < e.outer * e.chunks * tiles; block += gridDim.x) {
    const int64_t c = block % tiles * columns + column, chunk = block / tiles % e.chunks;
    const int64_t a = block / tiles / e.chunks, last = min(e.rows, (chunk + 1) * e.length);
    const bool inside = c < e.inner;
    typename Fold::State state = fold.start(inside ? a * e.inner + c : 0);
    for (int64_t r = chunk * e.length + part; inside && r < last; r += parts) {
      fold.add(state, load(x[(a * e.rows + r) * e.inner + c]), r);
    }
    states[threadIdx.x] = state;
    for (int n = parts; n > 1; n /= 2) {
      __syncthreads();
      if (part < n / 2) fold.merge(states[threadIdx.x], states[threadIdx.x + n / 2 * columns]);
    }
    if (part == 0 && inside) {
      partial[chunk * e.results() + a * e.inner + c] = states[threadIdx.x];
    }
    __syncthreads();
  }
}

// partial (chunks,A,C), in scratch.
template <typename Fold>
typename Fold::State* fold_middle(Context* ctx, const char* name, const Fold& fold,
                                  const typename Fold::T* x, const Extent& e) {
  using T = typename Fold::T;
  auto* partial = workspace<typename Fold::State>(ctx, e.chunks * e.results());
  if (e.results() == 0) return partial;
  if (e.inner == 1) {
    const RowPlan plan =
        plan_rows<T>(name, e.outer * e.chunks, std::min(e.length, e.rows), kFoldBatch);
    launch(ctx, name, plan.grid, fold_rows<Fold>, fold, x, e, plan.task, partial);
    return partial;
  }
  int32_t columns = 2;
  while (columns < kWarp && columns < e.inner) columns *= 2;
  const int64_t blocks = e.outer * e.chunks * ceil_div(e.inner, columns);
  const Grid grid{dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks))), dim3(kFoldThreads)};
  launch(ctx, name, grid, fold_columns<Fold>, fold, x, e, columns, partial);
  return partial;
}

// The state of result o over its chunks, in their order.
template <typename Fold>
__device__ inline typename Fold::State merged(const Fold& fold, const typename Fold::State* partial,
                                              int64_t results, int64_t chunks, int64_t o) {
  typename Fold::State state = partial[o];
  for (int64_t p = 1; p < chunks; ++p) fold.merge(state, partial[p * results + o]);
  return state;
}

// ---- Sums, log-sum-exps and extremes ------------------------------------------------------------

struct SumState {
  double total, shift;
};
// Sum of x, or of (x - shift)^2.
template <typename Element>
struct SumFold {
  using T = Element;
  using State = SumState;
  const double* shift = nullptr;  // a result each; null: the sum of x

  __device__ State start(int64_t o) const {
    const double about = shift ? shift[o] : 0;
    return {about - about, about};  // NaN where the mean is no number
  }
  __device__ void add(State& s, Acc<T> x, int64_t) const {
    const double value = static_cast<double>(x) - s.shift;
    s.total += shift ? value * value : value;
  }
  __device__ void merge(State& s, const State& later) const { s.total += later.total; }
};

template <typename A>
struct LogState {
  double total;
  A highest;
};
// Sum of exponentials about the running maximum, in which a NaN stays.
template <typename Element>
struct LogFold {
  using T = Element;
  using A = Acc<T>;
  using State = LogState<A>;

  __device__ State start(int64_t) const { return {0, static_cast<A>(-INFINITY)}; }
  __device__ void add(State& s, A x, int64_t) const {
    if (x == static_cast<A>(-INFINITY)) return;
    if (x <= s.highest) {
      s.total += static_cast<double>(std::exp(x - s.highest));
    } else if (s.highest == s.highest) {
      s.total = s.total * below(s.highest, x) + 1;
      s.highest = x;
    }
  }
  __device__ void merge(State& s, const State& later) const {
    const A top = Max{}(s.highest, later.highest);
    const double mine = s.highest == top ? s.total : s.total * below(s.highest, top);
    const double other =
        later.highest == top ? later.total : later.total * below(later.highest, top);
    s = {mine + other, top};
  }
  __device__ static double below(A x, A top) {
    return std::exp(static_cast<double>(x) - static_cast<double>(top));
  }
  __device__ static double result(const State& s) {
    const auto top = static_cast<double>(s.highest);
    return top - top == 0 ? top + std::log(s.total) : top;
  }
};

template <typename A>
struct ExtremeState {
  A value;
  int32_t position;  // -1: nothing taken in
};
// The extreme and its first position. A NaN beats every number.
template <typename Element>
struct ExtremeFold {
  using T = Element;
  using A = Acc<T>;
  using State = ExtremeState<A>;
  int32_t is_max;

  __device__ State start(int64_t) const { return {A(0), -1}; }
  __device__ void add(State& s, A x, int64_t r) const {
    if (s.position < 0 || beats(x, s.value)) s = {x, static_cast<int32_t>(r)};
  }
  __device__ void merge(State& s, const State& other) const {
    if (other.position < 0) return;
    const bool first = other.position < s.position && !beats(s.value, other.value);
    if (s.position < 0 || beats(other.value, s.value) || first) s = other;
  }
  __device__ bool beats(A a, A b) const { return (is_max ? a > b : a < b) || (a != a && b == b); }
};

template <typename D>
__global__ void finish_sums(const SumState* partial, D* y, int64_t results, int64_t chunks,
                            double divisor) {
  const SumFold<float> fold{};
  for (int64_t o = thread_index(); o < results; o += thread_count()) {
    const double sum = merged(fold, partial, results, chunks, o).total;
    y[o] = store<D>(static_cast<Acc<D>>(sum / divisor));
  }
}

template <typename A, typename D>
__global__ void finish_logs(const LogState<A>* partial, D* y, int64_t results, int64_t chunks) {
  const LogFold<A> fold{};
  for (int64_t o = thread_index(); o < results; o += thread_count()) {
    const auto state = merged(fold, partial, results, chunks, o);
    y[o] = store<D>(static_cast<Acc<D>>(LogFold<A>::result(state)));
  }
}

template <typename T>
__global__ void finish_extremes(ExtremeFold<T> fold, const ExtremeState<Acc<T>>* partial, T* values,
                                int32_t* positions, int64_t results, int64_t chunks) {
  for (int64_t o = thread_index(); o < results; o += thread_count()) {
    const auto state = merged(fold, partial, results, chunks, o);
    if (values) values[o] = store<T>(state.value);
    if (positions) positions[o] = state.position;
  }
}

// y (A,C) = sum of x, or of (x - shift)^2, over divisor
template <typename T, typename D>
void sum_middle(Context* ctx, const char* name, const SumFold<T>& fold, const T* x, const Extent& e,
                double divisor, D* y) {
  const SumState* partial = fold_middle(ctx, name, fold, x, e);
  launch(ctx, name, elements(e.results()), finish_sums<D>, partial, y, e.results(), e.chunks,
         divisor);
}

template <typename T>
double* means(Context* ctx, const char* name, const T* x, const Extent& e) {
  auto* mean = workspace<double>(ctx, e.results());
  sum_middle<T, double>(ctx, name, {}, x, e, static_cast<double>(e.rows), mean);
  return mean;
}

template <typename T>
struct BackwardOperands {
  const T *dy, *x;
  const Acc<T>* y;     // logsumexp's result, or null
  const double* mean;  // variance's, or null
  T* dx;
};

template <typename T>
__global__ void reduce_gradients(BackwardOperands<T> o, Extent e, Acc<T> factor) {
  using A = Acc<T>;
  const int64_t slab = e.rows * e.inner;
  for (int64_t i = thread_index(); i < e.outer * slab; i += thread_count()) {
    const int64_t result = i / slab * e.inner + i % e.inner;
    const A value = load(o.x[i]);
    const A slope = o.mean ? factor * static_cast<A>(static_cast<double>(value) - o.mean[result])
                           : std::exp(value - o.y[result]);
    o.dx[i] = store<T>(load(o.dy[result]) * slope);
  }
}

}  // namespace

int32_t reduce_kernel(Context* ctx, const balora_reduce& o) {
  const char* name = "reduce";
  const Extent e = extent_of(o.x);
  const auto rows = static_cast<double>(e.rows);
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const T* data = data_of<T>(o.x);
    const double* mean = o.op == BALORA_VARIANCE ? means(ctx, name, data, e) : nullptr;
    if (o.op == BALORA_LOGSUMEXP) {
      using A = Acc<T>;
      const LogState<A>* partial = fold_middle(ctx, name, LogFold<T>{}, data, e);
      dispatch_float(o.y->dtype, [&]<typename D>() {
        launch(ctx, name, elements(e.results()), finish_logs<A, D>, partial, data_of<D>(o.y),
               e.results(), e.chunks);
      });
      return;
    }
    const double divisor = o.op == BALORA_VARIANCE ? rows - o.correction
                           : o.op == BALORA_MEAN   ? rows
                                                   : 1;
    dispatch_float(o.y->dtype, [&]<typename D>() {
      sum_middle<T, D>(ctx, name, {.shift = mean}, data, e, divisor, data_of<D>(o.y));
    });
  });
  return 0;
}

int32_t reduce_backward_kernel(Context* ctx, const balora_reduce_backward& o) {
  const char* name = "reduce_backward";
  const Extent e = extent_of(o.x);
  dispatch_float(o.x->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const T* data = data_of<T>(o.x);
    const bool variance = o.op == BALORA_VARIANCE;
    const double* mean = variance ? means(ctx, name, data, e) : nullptr;
    const BackwardOperands<T> operands{data_of<T>(o.dy), data, variance ? nullptr : data_of<A>(o.y),
                                       mean, data_of<T>(o.dx)};
    const double factor = 2.0 / (static_cast<double>(e.rows) - o.correction);
    launch(ctx, name, elements(view_numel(*o.x)), reduce_gradients<T>, operands, e, factor);
  });
  return 0;
}

int32_t extreme_kernel(Context* ctx, const balora_extreme& o) {
  const char* name = "extreme";
  const Extent e = extent_of(o.x);
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const ExtremeFold<T> fold{o.is_max};
    const auto* partial = fold_middle(ctx, name, fold, data_of<T>(o.x), e);
    launch(ctx, name, elements(e.results()), finish_extremes<T>, fold, partial,
           data_of<T>(o.values), data_of<int32_t>(o.positions), e.results(), e.chunks);
  });
  return 0;
}

}  // namespace balora::cuda
