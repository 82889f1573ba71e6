// Rotary position embedding in the rotate-half convention of the HF checkpoints: channels i and i +
// Drot/2 of each head are rotated by the angle of (position, i); channels from Drot on are copied
// (partial rotary). The backward is the same rotation with the angle negated. Heads may be
// row-strided, as slices of a fused q, k, v product are.
// A thread rotates eight pairs: 4 bytes of bf16 a channel, bound by memory. The threads of a block
// are the heads of one or a few rows, so the tables come from the L1 cache.
#include "elementwise/elementwise.cuh"
#include "kernels/shared/rope.h"

namespace balora::cuda {
namespace {

struct Rotation {
  Operand x, y, cosine, sine;  // tables (P, half)
  const int32_t* positions;
  int64_t x_stride, y_stride;  // of a row
  int64_t heads, size, half, table;
  int64_t rotated, copied;  // groups of a head
  int32_t inverse;
  Fault* fault;
  int32_t row;
};

template <typename A>
__device__ void rotate_group(const Rotation& r, int64_t from, int64_t to, int64_t angle,
                             int count) {
  A first[kGroup], second[kGroup], c[kGroup], s[kGroup];
  read_group(r.x, from, count, first);
  read_group(r.x, from + r.half, count, second);
  read_group(r.cosine, angle, count, c);
  read_group(r.sine, angle, count, s);
  BALORA_UNROLL
  for (int j = 0; j < kGroup; ++j) {
    const auto pair = rotated<A>(first[j], second[j], c[j], r.inverse ? -s[j] : s[j]);
    first[j] = pair.first;
    second[j] = pair.second;
  }
  write_group(r.y, to, count, first);
  write_group(r.y, to + r.half, count, second);
}

// Division of 32-bit numbers is several times cheaper.
__device__ int64_t quotient(int64_t a, int64_t b, bool small) {
  return small ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

template <typename A>
__global__ void rotate(const __grid_constant__ Rotation r, int64_t n_items) {
  const int64_t groups = r.rotated + r.copied;
  const bool small = n_items <= 0x7fffffff;
  for (int64_t i = thread_index(); i < n_items; i += thread_count()) {
    const int64_t head = quotient(i, groups, small), group = i - head * groups;
    const int64_t n = quotient(head, r.heads, small), h = head - n * r.heads;
    const int64_t position = r.positions[n];
    if (position < 0 || position >= r.table) {
      report_fault(r.fault, kOutsideTables, r.row,
                   fault_pair(static_cast<int32_t>(n), static_cast<int32_t>(position)), r.table);
      continue;
    }
    const int64_t from = n * r.x_stride + h * r.size, to = n * r.y_stride + h * r.size;
    if (group < r.rotated) {
      const int64_t first = group * kGroup;
      rotate_group<A>(r, from + first, to + first, position * r.half + first,
                      group_count(r.half, first));
    } else {
      const int64_t first = 2 * r.half + (group - r.rotated) * kGroup;
      const int count = group_count(r.size, first);
      A value[kGroup];
      read_group(r.x, from + first, count, value);
      write_group(r.y, to + first, count, value);
    }
  }
}

// Whether groups of a head start at multiples of 16 bytes.
Operand rows_of(const View* view, int64_t half) {
  Operand out = operand(view);
  const int64_t pack = pack_of(view->dtype);
  out.aligned =
      out.aligned && view->stride[0] % pack == 0 && view->shape[2] % pack == 0 && half % pack == 0;
  return out;
}
Operand table_of(const View* view) {
  Operand out = operand(view);
  out.aligned = out.aligned && view->shape[1] % pack_of(view->dtype) == 0;
  return out;
}

}  // namespace

int32_t rope_kernel(Context* ctx, const balora_rope& o) {
  if (view_numel(*o.x) == 0) return 0;
  const int64_t heads = o.x->shape[1], size = o.x->shape[2], half = o.cosine->shape[1];
  const Rotation r{.x = rows_of(o.x, half),
                   .y = rows_of(o.y, half),
                   .cosine = table_of(o.cosine),
                   .sine = table_of(o.sine),
                   .positions = data_of<const int32_t>(o.positions),
                   .x_stride = o.x->stride[0],
                   .y_stride = o.y->stride[0],
                   .heads = heads,
                   .size = size,
                   .half = half,
                   .table = o.cosine->shape[0],
                   .rotated = ceil_div(half, kGroup),
                   .copied = ceil_div(size - 2 * half, kGroup),
                   .inverse = o.inverse,
                   .fault = state_of(ctx).fault,
                   .row = fault_row("rope")};
  const int64_t items = o.x->shape[0] * heads * (r.rotated + r.copied);
  dispatch_accumulator(
      o.x->dtype, [&]<typename A>() { launch(ctx, "rope", elements(items), rotate<A>, r, items); });
  return 0;
}

}  // namespace balora::cuda
