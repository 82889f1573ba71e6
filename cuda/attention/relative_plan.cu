// Before the scores of attention with relative positions: tiles of both sides, the checks of index
// and reach, and the position terms.
//
// position terms: a tile of 64 rows by 64 positions a block, 2 N P D flops a head by FMA: as much
// as q k^T where P = T, and N P numbers written.
#include "attention/relative_attention.cuh"

namespace balora::cuda::relative {
namespace {

constexpr int kCheckThreads = 256;

__global__ void check_index(const int32_t* index, int32_t count, int32_t positions, Fault* fault,
                            int32_t row) {
  for (auto i = static_cast<int32_t>(threadIdx.x); i < count; i += kCheckThreads) {
    if (index[i] >= 0 && index[i] < positions) continue;
    report_fault(fault, kPositionIndex, row, fault_pair(i, index[i]), positions);
  }
}

__global__ void check_reach(Bounds queries, Bounds keys, int32_t segments, int32_t relative,
                            Fault* fault, int32_t row) {
  for (auto s = static_cast<int32_t>(threadIdx.x); s < segments; s += kCheckThreads) {
    const int32_t longest = max(queries.segment(s).rows, keys.segment(s).rows);
    if (2 * int64_t{longest} - 1 <= relative) continue;
    report_fault(fault, kSegmentReach, row, fault_pair(s, longest), relative);
  }
}

// out (heads of the chunk, rows, P) = x table^T by head.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    multiply_table(Heads<const T> x, Heads<const T> table, int32_t rows, int32_t positions,
                   int32_t head, int32_t position_tiles, int32_t heads, Acc<T>* out) {
  using A = Acc<T>;
  SharedMemory shared;
  const Slices<A> pass(shared);
  const auto position = static_cast<int32_t>(blockIdx.x % position_tiles) * kSide;
  const auto own = static_cast<int32_t>(blockIdx.x / position_tiles % heads);
  const auto row = static_cast<int32_t>(blockIdx.x / position_tiles / heads) * kSide;
  Corner<A> sums = {};
  multiply_rows(sums, rows_of(x, row, head + own, rows - row),
                rows_of(table, position, head + own, positions - position), pass);
  const A ones[kEdge] = {1, 1, 1, 1};
  write_corner<A>(sums, ones, out + (int64_t{own} * rows + row) * positions, positions, rows - row,
                  position, positions);
}

template <typename T>
void fill_side(Context* ctx, const char* row, const Operands<T>& o, Heads<const T> x,
               Heads<const T> table, int32_t rows, const Acc<T>* out) {
  if (!table.data || rows == 0) return;
  const int64_t tiles = ceil_div(o.terms.positions, kSide);
  const int64_t blocks = tiles * o.heads * ceil_div(rows, kSide);
  launch(ctx, row,
         {dim3(static_cast<unsigned>(blocks)), dim3(kBlockThreads), Slices<Acc<T>>::kBytes},
         multiply_table<T>, x, table, rows, o.terms.positions, o.head, tiles, o.heads,
         const_cast<Acc<T>*>(out));
}

}  // namespace

template <typename T>
Operands<T> operands_of(const Relative& r) {
  Operands<T> o{};
  o.q = heads_of<const T>(r.q), o.k = heads_of<const T>(r.k), o.v = heads_of<const T>(r.v);
  o.position_k = heads_of<const T>(r.position_k), o.position_q = heads_of<const T>(r.position_q);
  o.queries = bounds_of(r.cu_queries, r.query_lengths, r.q->shape[0]);
  o.keys = bounds_of(r.cu_keys, r.key_lengths, r.k->shape[0]);
  o.terms.bias = data_of<T>(r.bias);
  o.terms.index = data_of<int32_t>(r.index);
  const View* placed = r.bias ? r.bias : r.index;
  const View* table = r.position_k ? r.position_k : r.position_q;
  o.terms.relative = placed ? narrowed(placed->shape[0], "a number of relative positions of") : 0;
  o.terms.positions = table ? narrowed(table->shape[0], "a number of positions of") : 0;
  o.all_heads = narrowed(r.q->shape[1], "a number of heads of");
  o.size = narrowed(r.q->shape[2], "a head size of");
  o.causal = r.causal;
  o.scale = static_cast<Acc<T>>(r.scale);
  return o;
}

PairTiles plan_pairs(Context* ctx, const char* row, const Relative& r) {
  const View* table = r.position_k ? r.position_k : r.position_q;
  Fault* fault = state_of(ctx).fault;
  const Grid one{dim3(1), dim3(kCheckThreads)};
  if (table) {
    launch(ctx, row, one, check_index, data_of<int32_t>(r.index), r.index->shape[0],
           table->shape[0], fault, fault_row(row));
  }
  const int64_t n = r.q->shape[0], m = r.k->shape[0];
  const Segments queries{.cu_seqlens = r.cu_queries, .lengths = r.query_lengths, .n = n, .m = n};
  const Segments keys{.cu_seqlens = r.cu_keys, .lengths = r.key_lengths, .n = m, .m = m};
  const PairTiles tiles{plan_tiles(ctx, row, queries, true, kSide),
                        plan_tiles(ctx, row, keys, false, kSide)};
  const View* placed = r.bias ? r.bias : r.index;
  if (placed) {
    launch(ctx, row, one, check_reach, bounds_of(r.cu_queries, r.query_lengths, n),
           bounds_of(r.cu_keys, r.key_lengths, m), r.cu_queries->shape[0] - 1, placed->shape[0],
           fault, fault_row(row));
  }
  return tiles;
}

template <typename T>
void reserve_terms(Context* ctx, Operands<T>& o, int32_t heads) {
  const auto room = [&](const Heads<const T>& table, int64_t rows) -> const Acc<T>* {
    return table.data ? workspace<Acc<T>>(ctx, rows * o.terms.positions * heads) : nullptr;
  };
  o.terms.to_position = room(o.position_k, o.queries.n);
  o.terms.from_key = room(o.position_q, o.keys.n);
}

template <typename T>
void fill_terms(Context* ctx, const char* row, const Operands<T>& o) {
  fill_side(ctx, row, o, o.q, o.position_k, o.queries.n, o.terms.to_position);
  fill_side(ctx, row, o, o.k, o.position_q, o.keys.n, o.terms.from_key);
}

#define RELATIVE(T)                                                \
  template Operands<T> operands_of<T>(const Relative&);            \
  template void reserve_terms<T>(Context*, Operands<T>&, int32_t); \
  template void fill_terms<T>(Context*, const char*, const Operands<T>&);
RELATIVE(float)
RELATIVE(double)
RELATIVE(bf16)
RELATIVE(f16)
#undef RELATIVE

}  // namespace balora::cuda::relative
