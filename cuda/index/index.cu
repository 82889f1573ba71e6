// Reads and writes through an index (kernels/cpu/index/index.cc). An index out of range is reported
// as a fault and touches nothing. select_rows copies 2 * row bytes an id, a warp a stretch of a
// row. select_rows_backward writes every row of dx once: zero, or the sum of its ids' rows in the
// order of the ids, held in registers (buckets.cuh finds the ids of a row); V=49k, C=576 in f32 is
// 113 MB, 34 us at 3.35 TB/s, and the buckets add some 10 us. scatter_add walks k with a thread a
// column or, with few columns and many k, a thread an element of y through the same buckets; both
// add in the order of k, without atomics, and give the CPU's bits.
#include "device/rows.cuh"
#include "index/buckets.cuh"

namespace balora::cuda {
namespace {

constexpr int kCopyThreads = 256;
constexpr int kStretch = 4;  // units of a row that a thread copies

// ---- select_rows --------------------------------------------------------------------------------

struct Stretches {
  int64_t rows;  // of the table
  int64_t ids;
  int64_t size;     // units of a row
  int64_t length;   // units of a stretch
  int64_t per_row;  // stretches of a row
};

template <typename U>
__global__ void copy_rows(const U* table, Ids ids, U* y, Stretches s, FaultPlace place) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = thread_count() / kWarp;
  for (int64_t w = thread_index() / kWarp; w < s.ids * s.per_row; w += warps) {
    const int64_t n = w / s.per_row, first = w % s.per_row * s.length;
    const int64_t id = ids[n], last = min(s.size, first + s.length);
    if (id < 0 || id >= s.rows) {
      if (lane == 0) place.outside(id, n, s.rows);
      continue;
    }
    const U* from = table + id * s.size;
    U* to = y + n * s.size;
    U held[kStretch];
    BALORA_UNROLL
    for (int u = 0; u < kStretch; ++u) {
      const int64_t i = first + lane + u * kWarp;
      if (i < last) held[u] = from[i];
    }
    BALORA_UNROLL
    for (int u = 0; u < kStretch; ++u) {
      const int64_t i = first + lane + u * kWarp;
      if (i < last) to[i] = held[u];
    }
  }
}

// Calls body.template operator()<U>() for the widest unit in which rows of `bytes` can be moved
// between the addresses or-ed in `address`.
template <typename Body>
void dispatch_unit(uint64_t address, int64_t bytes, Body&& body) {
  const uint64_t both = address | static_cast<uint64_t>(bytes);
  if (both % 16 == 0) return body.template operator()<Pack<uint32_t, 4>>();
  if (both % 8 == 0) return body.template operator()<uint64_t>();
  if (both % 4 == 0) return body.template operator()<uint32_t>();
  if (both % 2 == 0) return body.template operator()<uint16_t>();
  return body.template operator()<uint8_t>();
}

int64_t bytes_of(int32_t dtype) {
  switch (dtype) {
    case BALORA_U8:
      return 1;
    case BALORA_BF16:
    case BALORA_F16:
      return 2;
    case BALORA_F64:
    case BALORA_I64:
      return 8;
    default:
      return 4;
  }
}

// ---- select_rows_backward -----------------------------------------------------------------------

// dx (V,C): a warp sums the columns [chunk * kWarp * W, ...) of one row.
template <typename S, typename D>
__global__ void __launch_bounds__(kCopyThreads)
    sum_rows(const S* dy, Buckets buckets, D* dx, int64_t rows, int32_t size, int32_t chunks) {
  constexpr int W = kPackOf<S>, kAhead = 4;
  const int64_t w = thread_index() / kWarp;
  const int64_t v = w / chunks;
  if (v >= rows) return;
  const auto lane = static_cast<int32_t>(threadIdx.x % kWarp);
  const int32_t first = (static_cast<int32_t>(w % chunks) * kWarp + lane) * W;
  const Cut<S> cut = Cut<S>::columns(size);
  const Bucket bucket = buckets.of_key[v];
  Acc<S> total[W] = {};
  for (int32_t i = bucket.begin; i < bucket.end; i += kAhead) {
    Piece<S> piece[kAhead];
    BALORA_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      const int64_t n = buckets.positions[min(i + u, bucket.end - 1)];
      piece[u] = cut.row(dy + n * size).get(first, S{});
    }
    BALORA_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      BALORA_UNROLL
      for (int j = 0; j < W; ++j) {
        if (i + u < bucket.end) total[j] += piece[u][j];
      }
    }
  }
  const Row<D> out = Cut<D>::columns(size).row(dx + v * size);
  BALORA_UNROLL
  for (int at = 0; at < W; at += kPackOf<D>) {
    Piece<D> piece;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<D>; ++j) piece.put(j, store<D>(total[at + j]));
    out.put(first + at, piece);
  }
}

template <typename S, typename D>
void launch_sum_rows(Context* ctx, const View* dy, const Buckets& buckets, const View* dx) {
  const int64_t rows = dx->shape[0], size = dx->shape[1];
  if (rows == 0 || size == 0) return;
  if (size > INT32_MAX / 2) throw std::runtime_error("select_rows_backward: a row is too long");
  const int64_t chunks = ceil_div(size, kWarp * kPackOf<S>);
  const int64_t blocks = ceil_div(rows * chunks * kWarp, kCopyThreads);
  if (blocks > INT32_MAX) throw std::runtime_error("select_rows_backward: dx is too large");
  const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(kCopyThreads)};
  launch(ctx, "select_rows_backward", grid, sum_rows<S, D>, data_of<S>(dy), buckets, data_of<D>(dx),
         rows, size, chunks);
}

// ---- gather and scatter_add ---------------------------------------------------------------------

// Position (a, k, c) of an (A,K,C) index names position (a, index, c) of (A,R,C).
struct Middle {
  int64_t outer, rows, length, inner;
};

template <typename U>
__global__ void gather_elements(const U* x, Ids ids, U* y, Middle m, FaultPlace place) {
  const int64_t n = m.outer * m.length * m.inner;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const int64_t id = ids[i], a = i / m.inner / m.length, c = i % m.inner;
    if (id < 0 || id >= m.rows) {
      place.outside(id, i, m.rows);
      continue;
    }
    y[i] = x[(a * m.rows + id) * m.inner + c];
  }
}

// wide = base, or zero.
template <typename T>
__global__ void start_sums(const T* base, Acc<T>* wide, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    wide[i] = base ? load(base[i]) : Acc<T>(0);
  }
}

template <typename T>
__global__ void end_sums(const Acc<T>* wide, T* y, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) y[i] = store<T>(wide[i]);
}

// A thread a column (a, c).
template <typename T>
__global__ void add_columns(const T* source, Ids ids, Acc<T>* wide, Middle m, FaultPlace place) {
  for (int64_t ac = thread_index(); ac < m.outer * m.inner; ac += thread_count()) {
    const int64_t a = ac / m.inner, c = ac % m.inner;
    for (int64_t k = 0; k < m.length; ++k) {
      const int64_t at = (a * m.length + k) * m.inner + c, id = ids[at];
      if (id < 0 || id >= m.rows) {
        place.outside(id, at, m.rows);
        continue;
      }
      wide[(a * m.rows + id) * m.inner + c] += load(source[at]);
    }
  }
}

// A thread an element of y.
template <typename T>
__global__ void add_buckets(const T* base, const T* source, Buckets buckets, T* y, Middle m) {
  const int64_t slab = m.rows * m.inner, ids = m.length * m.inner;
  for (int64_t i = thread_index(); i < m.outer * slab; i += thread_count()) {
    const Bucket bucket = buckets.of_key[i];
    const int64_t from = i / slab * ids;
    Acc<T> sum = base ? load(base[i]) : Acc<T>(0);
    for (int32_t b = bucket.begin; b < bucket.end; ++b) {
      sum += load(source[from + buckets.positions[from + b]]);
    }
    y[i] = store<T>(sum);
  }
}

// Walking k costs about half a microsecond a step, the buckets 16 bytes an index and span from the
// L2 cache: the spans times the columns at which both are equal.
bool few_columns(const Middle& m, const BucketTask& task) {
  return m.length >= 64 && m.length * m.inner <= INT32_MAX &&
         m.outer * m.inner * task.spans < 100'000;
}

template <typename T>
void scatter_add(Context* ctx, const View* base, const View* index, const View* source,
                 const View* y, const Middle& m) {
  const char* name = "scatter_add";
  const int64_t n = view_numel(*y);
  const BucketTask task = bucket_task(m.outer, m.length * m.inner, m.rows, m.inner);
  if (few_columns(m, task)) {
    const Buckets buckets = make_buckets(ctx, name, index, task);
    launch(ctx, name, elements(n), add_buckets<T>, data_of<T>(base), data_of<T>(source), buckets,
           data_of<T>(y), m);
    return;
  }
  using A = Acc<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;
  A* wide = kDirect ? data_of<A>(y) : workspace<A>(ctx, n);
  launch(ctx, name, elements(n), start_sums<T>, data_of<T>(base), wide, n);
  launch(ctx, name, elements(m.outer * m.inner, 64), add_columns<T>, data_of<T>(source),
         ids_of(index), wide, m, fault_place(ctx, name));
  if (!kDirect) launch(ctx, name, elements(n), end_sums<T>, wide, data_of<T>(y), n);
}

}  // namespace

int32_t select_rows_kernel(Context* ctx, const balora_select_rows& o) {
  const int64_t bytes = o.table->shape[1] * bytes_of(o.table->dtype), n = view_numel(*o.ids);
  if (bytes == 0 || n == 0) return 0;
  const uint64_t address =
      reinterpret_cast<uintptr_t>(o.table->data) | reinterpret_cast<uintptr_t>(o.y->data);
  dispatch_unit(address, bytes, [&]<typename U>() {
    constexpr int64_t kLength = kStretch * kWarp;
    const int64_t size = bytes / static_cast<int64_t>(sizeof(U));
    const Stretches s{o.table->shape[0], n, size, kLength, ceil_div(size, kLength)};
    launch(ctx, "select_rows", elements(n * s.per_row * kWarp, kCopyThreads), copy_rows<U>,
           data_of<U>(o.table), ids_of(o.ids), data_of<U>(o.y), s, fault_place(ctx, "select_rows"));
  });
  return 0;
}

int32_t select_rows_backward_kernel(Context* ctx, const balora_select_rows_backward& o) {
  const BucketTask task = bucket_task(1, view_numel(*o.ids), o.dx->shape[0], 1);
  const Buckets buckets = make_buckets(ctx, "select_rows_backward", o.ids, task);
  dispatch_float(o.dy->dtype, [&]<typename S>() {
    if (o.dx->dtype == o.dy->dtype) {
      launch_sum_rows<S, S>(ctx, o.dy, buckets, o.dx);
    } else {
      launch_sum_rows<S, Acc<S>>(ctx, o.dy, buckets, o.dx);
    }
  });
  return 0;
}

int32_t gather_kernel(Context* ctx, const balora_gather& o) {
  const Middle m{o.x->shape[0], o.x->shape[1], o.index->shape[1], o.x->shape[2]};
  dispatch_unit(0, bytes_of(o.x->dtype), [&]<typename U>() {
    launch(ctx, "gather", elements(view_numel(*o.index)), gather_elements<U>, data_of<U>(o.x),
           ids_of(o.index), data_of<U>(o.y), m, fault_place(ctx, "gather"));
  });
  return 0;
}

int32_t scatter_add_kernel(Context* ctx, const balora_scatter_add& o) {
  const Middle m{o.y->shape[0], o.y->shape[1], o.index->shape[1], o.y->shape[2]};
  dispatch_float(o.y->dtype,
                 [&]<typename T>() { scatter_add<T>(ctx, o.base, o.index, o.source, o.y, m); });
  return 0;
}

}  // namespace balora::cuda
