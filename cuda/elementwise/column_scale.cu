// y = x * scale + bias over (N,C) rows: a factor and an offset a column (DoRA's magnitude over its
// norm), rounded once. The backward reads dy and x once: it writes dx and adds up the columns'
// sums on the way. A thread owns eight columns; a block sums 64 rows of 256 columns, the slabs'
// sums are added in order by a second kernel. bf16 moves 4 bytes an element forward, 6 backward.
#include "elementwise/elementwise.cuh"

namespace balora::cuda {
namespace {

template <typename A>
__global__ void scale_groups(Operand x, Operand scale, Operand bias, Operand y,
                             const __grid_constant__ Loop<4> loop) {
  for (int64_t i = thread_index(); i < loop.count; i += thread_count()) {
    int64_t at[4];
    const int count = group_offsets(loop, i, at);
    A value[kGroup], by[kGroup];
    read_group(x, at[0], loop.step(0), count, value);
    read_group(scale, at[1], loop.step(1), count, by);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) value[j] *= by[j];
    if (bias.data) {
      read_group(bias, at[2], loop.step(2), count, by);
      BALORA_UNROLL
      for (int j = 0; j < kGroup; ++j) value[j] += by[j];
    }
    write_group(y, at[3], loop.step(3), count, value);
  }
}

constexpr int kLanes = 32;     // threads along a row: 256 columns
constexpr int kRowGroups = 8;  // groups of threads that share the rows
constexpr int64_t kSlabRows = 64;

template <typename A>
struct Sums {
  A* scale;  // (slabs, C), or null
  A* bias;
};

// Adds the groups' sums of a thread's columns in order and writes them.
template <typename A>
__device__ void write_sums(A (&sum)[kGroup], A* scratch, A* out, int64_t column, int64_t columns) {
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes;
  BALORA_UNROLL
  for (int j = 0; j < kGroup; ++j) scratch[(own * kGroup + j) * kLanes + lane] = sum[j];
  __syncthreads();
  // Each group finishes one of the eight columns.
  A total = 0;
  for (int g = 0; g < kRowGroups; ++g) total += scratch[(g * kGroup + own) * kLanes + lane];
  if (out && column + own < columns) out[column + own] = total;
  __syncthreads();
}

template <typename A>
__global__ void scale_gradients(Operand dy, Operand x, Operand scale, Operand dx, Sums<A> sums,
                                int64_t rows, int64_t columns) {
  static_assert(kRowGroups == kGroup);
  BALORA_SHARED(A, scratch, kRowGroups * kGroup * kLanes);
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kLanes + lane) * kGroup;
  const int count = column < columns ? group_count(columns, column) : 0;
  A by[kGroup];
  read_group(scale, count > 0 ? column : 0, count, by);
  for (int64_t slab = blockIdx.y; slab * kSlabRows < rows; slab += gridDim.y) {
    const int64_t end = (slab + 1) * kSlabRows < rows ? (slab + 1) * kSlabRows : rows;
    A products[kGroup] = {}, values[kGroup] = {};
    for (int64_t r = slab * kSlabRows + own; count > 0 && r < end; r += kRowGroups) {
      const int64_t at = r * columns + column;
      A d[kGroup], v[kGroup];
      read_group(dy, at, count, d);
      if (sums.scale) {
        read_group(x, at, count, v);
        BALORA_UNROLL
        for (int j = 0; j < kGroup; ++j) products[j] += d[j] * v[j];
      }
      BALORA_UNROLL
      for (int j = 0; j < kGroup; ++j) {
        values[j] += d[j];
        v[j] = d[j] * by[j];
      }
      if (dx.data) write_group(dx, at, count, v);
    }
    if (sums.scale) {
      write_sums(products, scratch, sums.scale + slab * columns, column, columns);
    }
    if (sums.bias) write_sums(values, scratch, sums.bias + slab * columns, column, columns);
  }
}

template <typename A>
__global__ void add_slabs(Sums<A> sums, Sums<A> totals, int64_t slabs, int64_t columns) {
  for (int64_t c = thread_index(); c < columns; c += thread_count()) {
    double scale = 0, bias = 0;
    for (int64_t s = 0; s < slabs; ++s) {
      if (sums.scale) scale += sums.scale[s * columns + c];
      if (sums.bias) bias += sums.bias[s * columns + c];
    }
    if (sums.scale) totals.scale[c] = static_cast<A>(scale);
    if (sums.bias) totals.bias[c] = static_cast<A>(bias);
  }
}

// The same row again for each of x's.
View repeated(const View* row, const View* x) {
  View out = *x;
  out.data = row->data;
  out.dtype = row->dtype;
  out.stride[0] = 0;
  out.stride[1] = 1;
  return out;
}

void scale_rows(Context* ctx, const char* name, const balora_column_scale_forward& o) {
  const View factors = repeated(o.scale, o.x);
  const View offsets = repeated(o.bias ? o.bias : o.scale, o.x);
  const Loop<4> loop = plan_loop<4>({o.x, &factors, &offsets, o.y}), by_eight = by_groups(loop);
  if (loop.count == 0) return;
  dispatch_accumulator(o.x->dtype, [&]<typename A>() {
    launch(ctx, name, elements(by_eight.count), scale_groups<A>, operand(o.x, loop, 0),
           operand(&factors, loop, 1), operand(o.bias ? &offsets : nullptr, loop, 2),
           operand(o.y, loop, 3), by_eight);
  });
}

// A contiguous operand whose rows keep groups aligned.
Operand rows_of(const View* view) {
  Operand out = operand(view);
  out.aligned = out.aligned && view->shape[view->ndim - 1] % pack_of(view->dtype) == 0;
  return out;
}

template <typename A>
void find_gradients(Context* ctx, const View* dy, const View* x, const View* scale, const View* dx,
                    const Sums<A>& totals) {
  constexpr const char* kName = "column_scale_backward";
  const int64_t rows = dy->shape[0], columns = dy->shape[1], slabs = ceil_div(rows, kSlabRows);
  const Sums<A> sums{totals.scale ? workspace<A>(ctx, slabs * columns) : nullptr,
                     totals.bias ? workspace<A>(ctx, slabs * columns) : nullptr};
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kLanes * kGroup)),
                  static_cast<unsigned>(std::min<int64_t>(slabs, 65535)));
  launch(ctx, kName, Grid{grid, dim3(kLanes * kRowGroups)}, scale_gradients<A>, rows_of(dy),
         rows_of(totals.scale ? x : nullptr), operand(scale), rows_of(dx), sums, rows, columns);
  launch(ctx, kName, elements(columns), add_slabs<A>, sums, totals, slabs, columns);
}

}  // namespace

int32_t column_scale_forward_kernel(Context* ctx, const balora_column_scale_forward& o) {
  scale_rows(ctx, "column_scale_forward", o);
  return 0;
}

int32_t column_scale_backward_kernel(Context* ctx, const balora_column_scale_backward& o) {
  if (o.dy->shape[1] == 0) return 0;
  if (!o.dscale && !o.dbias) {
    if (o.dx) {
      scale_rows(ctx, "column_scale_backward", {.x = o.dy, .scale = o.scale, .y = o.dx});
    }
    return 0;
  }
  dispatch_accumulator(o.dy->dtype, [&]<typename A>() {
    find_gradients<A>(ctx, o.dy, o.x, o.scale, o.dx, {data_of<A>(o.dscale), data_of<A>(o.dbias)});
  });
  return 0;
}

}  // namespace balora::cuda
