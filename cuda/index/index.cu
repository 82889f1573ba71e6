// Reads and writes through an index (kernels/cpu/index/index.cc). An index out of range is reported
// as a fault and touches nothing. select_rows copies 2 * row bytes an id, a warp a part of a
// row. select_rows_backward writes every row of dx once: zero, or the sum of its ids' rows in the
// order of the ids, held in registers (buckets find the ids of a row); V=49k, C=576 in f32 is
// 113 MB, 34 us at 3.35 TB/s, and the buckets add some 10 us. scatter_add walks k with a thread a
// column or, with few columns and many k, a thread an element of y through the same buckets; both
// add in the order of k, without atomics, and give the CPU's bits.
#include "device/rows.cuh"
#include "device/scan.cuh"
#include "kernels/shared/rows.h"
#include "products/encoded.cuh"

namespace balora::cuda {
namespace {

// ---- Buckets ------------------------------------------------------------------------------------
// Positions by the row that their index names, in order: what a scatter that must not add in an
// order of chance needs. A block owns a span of rows and reads all indices of its slab twice: once
// to count, once to place. Reads are 2 * ids bytes a span from the L2 cache, so with 512 spans and
// 8192 ids of 4 bytes 34 MB (some 10 us); nothing is sorted, and no atomic decides an order.

// Indices, i32 or i64.
struct Ids {
  const void* data;
  int32_t wide;
  __device__ int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};
inline Ids ids_of(const View* ids) {
  return {ids->data, ids->dtype == BALORA_I64};
}

// Where a fault of this row is reported.
struct FaultPlace {
  Fault* fault;
  int32_t row;
  __device__ void outside(int64_t index, int64_t position, int64_t limit) const {
    report_fault(fault, kIndexOutOfRange, row, index, limit, position);
  }
};
inline FaultPlace fault_place(Context* ctx, const char* name) {
  return {state_of(ctx).fault, fault_row(name)};
}

// The positions of a key are positions[slab * ids + begin, ... + end), ascending.
struct Bucket {
  int32_t begin, end;
};

// `slabs` independent lists of `ids` indices below `rows`. Position i has the key
// index * inner + i % inner, so a slab has rows * inner keys.
struct BucketTask {
  int64_t slabs, ids, rows, inner;
  int64_t span, spans;  // keys a block, blocks a slab
};

constexpr int kBucketThreads = 256, kMaxSpan = 1024;

inline BucketTask bucket_task(int64_t slabs, int64_t ids, int64_t rows, int64_t inner) {
  const int64_t span = std::clamp<int64_t>(ceil_div(rows * inner, 512), 32, kMaxSpan);
  return {.slabs = slabs,
          .ids = ids,
          .rows = rows,
          .inner = inner,
          .span = span,
          .spans = ceil_div(rows * inner, span)};
}

// Counts of a span's keys (kMaxSpan) become where each key's positions begin.
__device__ inline void begin_buckets(int32_t* counts, int32_t below, int64_t span, Bucket* buckets,
                                     int32_t* scratch) {
  constexpr int kEach = kMaxSpan / kBucketThreads;
  const int first = threadIdx.x * kEach;
  int32_t mine[kEach], sum = 0, total = 0;
  for (int j = 0; j < kEach; ++j) sum += mine[j] = counts[first + j];
  int32_t begin = below + block_scan(sum, scratch, total);
  for (int j = 0; j < kEach; ++j) {
    counts[first + j] = begin;
    if (first + j < span) buckets[first + j] = {begin, begin + mine[j]};
    begin += mine[j];
  }
  __syncthreads();
}

static __global__ void __launch_bounds__(kBucketThreads)
    fill_buckets(Ids ids, BucketTask t, FaultPlace place, Bucket* buckets, int32_t* positions) {
  BALORA_SHARED(int32_t, cursor, kMaxSpan);
  BALORA_SHARED(int32_t, list, kBucketThreads);
  BALORA_SHARED(int32_t, scratch, kWarp + 1);
  const int64_t slab = blockIdx.x / t.spans, low = blockIdx.x % t.spans * t.span;
  const int64_t keys = t.rows * t.inner, span = min(t.span, keys - low), from = slab * t.ids;
  const auto key_of = [&](int64_t i) { return ids[from + i] * t.inner + i % t.inner; };
  for (int i = threadIdx.x; i < kMaxSpan; i += kBucketThreads) cursor[i] = 0;
  __syncthreads();
  int32_t below = 0;
  for (int64_t i = threadIdx.x; i < t.ids; i += kBucketThreads) {
    const int64_t index = ids[from + i];
    if (index < 0 || index >= t.rows) {
      if (low == 0) place.outside(index, from + i, t.rows);
      continue;
    }
    const int64_t local = key_of(i) - low;
    if (local < 0) ++below;
    if (local >= 0 && local < span) atomicAdd(&cursor[local], 1);
  }
  below = block_reduce(below, 0, scratch);
  begin_buckets(cursor, below, span, buckets + slab * keys + low, scratch);
  for (int64_t tile = 0; tile < t.ids; tile += kBucketThreads) {
    const int64_t i = tile + threadIdx.x;
    int64_t local = -1;
    if (i < t.ids) {
      const int64_t index = ids[from + i];
      if (index >= 0 && index < t.rows) local = key_of(i) - low;
    }
    const bool mine = local >= 0 && local < span;
    if (!__syncthreads_or(mine)) continue;
    int32_t total = 0;
    const int32_t slot = block_scan(mine, scratch, total);
    if (mine) list[slot] = static_cast<int32_t>(local);
    __syncthreads();
    int32_t at = mine ? cursor[local] : 0;  // and one on for each earlier position of the tile
    for (int32_t j = 0; mine && j < slot; ++j) at += list[j] == local;
    if (mine) positions[from + at] = static_cast<int32_t>(i);
    __syncthreads();
    if (mine) atomicAdd(&cursor[local], 1);
    __syncthreads();
  }
}

struct Buckets {
  const Bucket* of_key;      // (slabs, rows * inner)
  const int32_t* positions;  // (slabs, ids)
};
inline Buckets make_buckets(Context* ctx, const char* name, const View* ids, const BucketTask& t) {
  if (t.ids > INT32_MAX) {
    throw std::runtime_error(std::string(name) + ": more than 2^31 - 1 indices");
  }
  auto* of_key = workspace<Bucket>(ctx, t.slabs * t.rows * t.inner);
  auto* positions = workspace<int32_t>(ctx, t.slabs * t.ids);
  const Grid grid{dim3(static_cast<unsigned>(t.slabs * t.spans)), dim3(kBucketThreads)};
  launch(ctx, name, grid, fill_buckets, ids_of(ids), t, fault_place(ctx, name), of_key, positions);
  return {of_key, positions};
}

constexpr int kCopyThreads = 256;
constexpr int kCopyUnits = 4;  // units of a row that a thread copies

// ---- select_rows --------------------------------------------------------------------------------

struct RowParts {
  int64_t rows;  // of the table
  int64_t ids;
  int64_t size;     // units of a row
  int64_t length;   // units of a part
  int64_t per_row;  // parts of a row
};

template <typename U>
__global__ void copy_rows(const U* table, Ids ids, U* y, RowParts s, FaultPlace place) {
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
    U held[kCopyUnits];
    BALORA_UNROLL
    for (int u = 0; u < kCopyUnits; ++u) {
      const int64_t i = first + lane + u * kWarp;
      if (i < last) held[u] = from[i];
    }
    BALORA_UNROLL
    for (int u = 0; u < kCopyUnits; ++u) {
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

// Rows of a table in blocks: a warp decodes a row.
template <typename T>
__global__ void __launch_bounds__(kCopyThreads)
    decode_rows(const __grid_constant__ Encoded table, Ids ids, T* y, RowParts s, bool packed,
                FaultPlace place) {
  BALORA_SHARED(float, code, 16);
  load_code(table, code);
  const int64_t warps = thread_count() / kWarp;
  for (int64_t n = thread_index() / kWarp; n < s.ids; n += warps) {
    const int64_t id = ids[n];
    if (id < 0 || id >= s.rows) {
      if (threadIdx.x % kWarp == 0) place.outside(id, n, s.rows);
      continue;
    }
    decode_row(table, code, id, 0, s.size, y + n * s.size, packed, 0, 1);
  }
}

void select_decoded(Context* ctx, const balora_select_rows& o) {
  const int64_t n = view_numel(*o.ids), columns = o.table->shape[1];
  const RowParts s{o.table->shape[0], n, columns, columns, 1};
  dispatch_float(o.y->dtype, [&]<typename T>() {
    launch(ctx, "select_rows", elements(n * kWarp, kCopyThreads), decode_rows<T>,
           encoded_of(*o.table), ids_of(o.ids), data_of<T>(o.y), s,
           writes_packs<T>(o.y->data, columns), fault_place(ctx, "select_rows"));
  });
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
    Packet<S> packet[kAhead];
    BALORA_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      const int64_t n = buckets.positions[min(i + u, bucket.end - 1)];
      packet[u] = cut.row(dy + n * size).get(first, S{});
    }
    BALORA_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      BALORA_UNROLL
      for (int j = 0; j < W; ++j) {
        if (i + u < bucket.end) total[j] += packet[u][j];
      }
    }
  }
  const Row<D> out = Cut<D>::columns(size).row(dx + v * size);
  BALORA_UNROLL
  for (int at = 0; at < W; at += kPackOf<D>) {
    Packet<D> packet;
    BALORA_UNROLL
    for (int j = 0; j < kPackOf<D>; ++j) packet.put(j, store<D>(total[at + j]));
    out.put(first + at, packet);
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
  const int64_t bytes = o.table->shape[1] * element_size(o.table->dtype), n = view_numel(*o.ids);
  if (bytes == 0 || n == 0) return 0;
  if (o.table->encoding) {
    select_decoded(ctx, o);
    return 0;
  }
  const uint64_t address =
      reinterpret_cast<uintptr_t>(o.table->data) | reinterpret_cast<uintptr_t>(o.y->data);
  dispatch_unit(address, bytes, [&]<typename U>() {
    constexpr int64_t kLength = kCopyUnits * kWarp;
    const int64_t size = bytes / static_cast<int64_t>(sizeof(U));
    const RowParts s{o.table->shape[0], n, size, kLength, ceil_div(size, kLength)};
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
  dispatch_unit(0, element_size(o.x->dtype), [&]<typename U>() {
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
