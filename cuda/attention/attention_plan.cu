// The tiles of a batch of segments, and the row sums that both backward kernels read.
//
// plan: one block. A thread counts the tiles of a segment, a scan over the threads places them, the
// thread writes them: 28 bytes a tile, two bounds read a segment. It takes a few microseconds, most
// of them for the launch.
// row_dots: eight threads a (row, head), 16 bytes of each operand an access: bound by reading both
// once, M H D elements each.
#include "attention/attention.cuh"
#include "device/scan.cuh"

namespace balora::cuda::attention {
namespace {

constexpr int kPlanThreads = 256;

struct Bounds {
  const int32_t* cu;       // (B+1)
  const int32_t* queries;  // (B+1) or null
  const int32_t* lengths;  // (B) or null
  int32_t segments;
  int32_t n, m;

  // Rows of a segment before its first query.
  __device__ int32_t skip(int32_t s) const {
    return queries ? cu[s + 1] - cu[s] - (queries[s + 1] - queries[s]) : 0;
  }
};

__device__ bool report(Fault* fault, int32_t row, int32_t code, int32_t first, int32_t second,
                       int64_t limit) {
  report_fault(fault, code, row, fault_pair(first, second), limit);
  return true;
}

__device__ bool wrong_segment(const Bounds& b, int32_t s, Fault* fault, int32_t row) {
  const int32_t begin = b.cu[s], stop = b.cu[s + 1];
  if (stop < begin) return report(fault, row, kSegmentFalls, begin, stop, s + 1);
  const int32_t skip = b.skip(s), own = stop - begin - skip;
  if (skip < 0 || own < 0) return report(fault, row, kSegmentQueries, own, stop - begin, s);
  if (!b.lengths || (b.lengths[s] >= 0 && b.lengths[s] <= stop - begin)) return false;
  return report(fault, row, kSegmentLength, b.lengths[s], stop - begin, s);
}

__global__ void plan(Bounds b, bool of_queries, int32_t side, Tile* tiles, int32_t count,
                     Fault* fault, int32_t row) {
  BALORA_SHARED(int32_t, scratch, kWarp + 1);
  const int32_t thread = threadIdx.x;
  bool wrong = false;
  if (thread == 0 && (b.cu[0] != 0 || b.cu[b.segments] != b.n)) {
    wrong = report(fault, row, kSegmentEnds, b.cu[0], b.cu[b.segments], b.n);
  }
  if (thread == 0 && b.queries && (b.queries[0] != 0 || b.queries[b.segments] != b.m)) {
    wrong = report(fault, row, kQueryEnds, b.queries[0], b.queries[b.segments], b.m);
  }
  for (int32_t s = thread; s < b.segments; s += kPlanThreads) {
    wrong |= wrong_segment(b, s, fault, row);
  }
  const int32_t segments = __syncthreads_or(wrong) ? 0 : b.segments;
  int32_t placed = 0;
  for (int32_t from = 0; from < segments; from += kPlanThreads) {
    const int32_t s = from + thread;
    const int32_t begin = s < segments ? b.cu[s] : 0, stop = s < segments ? b.cu[s + 1] : 0;
    const int32_t skip = s < segments ? b.skip(s) : 0, first = of_queries ? skip : 0;
    const int32_t queries = (s < segments && b.queries ? b.queries[s] : begin) - skip;
    const int32_t own = (stop - begin - first + side - 1) / side;
    int32_t all = 0;
    const int32_t at = placed + block_scan(own, scratch, all);
    const int32_t rows = s < segments && b.lengths ? b.lengths[s] : stop - begin;
    for (int32_t t = 0; t < own; ++t) {
      tiles[at + t] = {.begin = begin,
                       .rows = rows,
                       .stop = stop,
                       .first = first + t * side,
                       .segment = s,
                       .skip = skip,
                       .queries = queries};
    }
    placed += all;
  }
  for (int32_t t = placed + thread; t < count; t += kPlanThreads) tiles[t] = {};
}

constexpr int kDotLanes = 8;

template <typename T>
__global__ void dot_rows(Heads<const T> x, Heads<const T> y, int64_t n, int32_t heads, bool packs,
                         Acc<T>* out) {
  constexpr int kPack = kPackOf<T>;
  const int64_t item = thread_index() / kDotLanes;
  const int32_t lane = threadIdx.x % kDotLanes;
  const bool there = item < n * heads;
  Acc<T> sum = 0;
  if (there) {
    const T* a = x.at(item / heads, static_cast<int32_t>(item % heads));
    const T* b = y.at(item / heads, static_cast<int32_t>(item % heads));
    if (packs) {
      for (int32_t d = lane * kPack; d < x.size; d += kDotLanes * kPack) {
        const auto p = *reinterpret_cast<const Pack<T, kPack>*>(a + d);
        const auto q = *reinterpret_cast<const Pack<T, kPack>*>(b + d);
        for (int i = 0; i < kPack; ++i) sum += load(p.at[i]) * load(q.at[i]);
      }
    } else {
      for (int32_t d = lane; d < x.size; d += kDotLanes) sum += load(a[d]) * load(b[d]);
    }
  }
  for (int by = kDotLanes / 2; by > 0; by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
  if (there && lane == 0) out[item] = sum;
}

}  // namespace

Tiles plan_tiles(Context* ctx, const char* row, const Segments& of, bool of_queries, int32_t side) {
  const auto segments = narrowed(of.cu_seqlens->shape[0] - 1, "a number of segments of");
  const int64_t count = (of_queries ? of.m : of.n) / side + segments;
  Tile* tiles = workspace<Tile>(ctx, count);
  const Bounds bounds{.cu = data_of<int32_t>(of.cu_seqlens),
                      .queries = data_of<int32_t>(of.cu_queries),
                      .lengths = data_of<int32_t>(of.lengths),
                      .segments = segments,
                      .n = narrowed(of.n, "a number of rows of"),
                      .m = narrowed(of.m, "a number of rows of")};
  launch(ctx, row, {dim3(1), dim3(kPlanThreads)}, plan, bounds, of_queries, side, tiles, count,
         state_of(ctx).fault, fault_row(row));
  return {tiles, count};
}

template <typename T>
void row_dots(Context* ctx, const char* row, Heads<const T> dout, Heads<const T> out, int64_t n,
              int32_t heads, Acc<T>* delta) {
  constexpr int kThreads = 256;
  const int64_t blocks = ceil_div(n * heads * kDotLanes, kThreads);
  launch(ctx, row, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, dot_rows<T>, dout, out, n,
         heads, in_packs(dout) && in_packs(out), delta);
}

#define ROW_DOTS(T)                                                                         \
  template void row_dots<T>(Context*, const char*, Heads<const T>, Heads<const T>, int64_t, \
                            int32_t, Acc<T>*);
ROW_DOTS(float)
ROW_DOTS(double)
ROW_DOTS(bf16)
ROW_DOTS(f16)
#undef ROW_DOTS

}  // namespace balora::cuda::attention
