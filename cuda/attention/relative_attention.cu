// Attention with relative positions, forward: DeBERTa's position terms and T5's bias, added to the
// scores of a tile as it is made. A block has 64 queries of one head and 64 columns of the values,
// and walks tiles of 64 keys with an online softmax, by FMA in f32 (f64): larger heads are cut into
// slices that compute the scores again. What a relative position adds is looked up: the bias by its
// place, the position terms in rows made beforehand (relative_plan.cu).
//
// 4 T^2 D flops a head and 2 P D a row and position table: DeBERTa-base (8 x 512, H = 12, D = 64,
// P = 512): 13 GFLOP, predicted 0.6 ms at a third of an H100's 60 TFLOP/s in f32.
#include "attention/relative_attention.cuh"

namespace balora::cuda::relative {
namespace {

template <typename T>
struct Outputs {
  Heads<T> out;
  Acc<T>* lse;  // (N,H)
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    forward(Operands<T> o, Outputs<T> to, Tiles tiles, int32_t slices) {
  using A = Acc<T>;
  const Tile tile = tiles.data[blockIdx.x / slices / o.heads];
  if (tile.first >= tile.extent()) return;
  const auto own = static_cast<int32_t>(blockIdx.x / slices % o.heads), head = o.head + own;
  const auto column = static_cast<int32_t>(blockIdx.x % slices) * kSide;
  SharedMemory shared;
  const Slices<A> pass(shared);
  A* weights = shared.array<A>(kSide * kTransposedPitch);
  const Rows queries = o.queries.segment(tile.segment), keys = o.keys.segment(tile.segment);
  const int32_t end = min(queries.rows, tile.first + kSide);
  const int32_t seen = tile.first >= end ? 0 : o.causal ? min(keys.rows, end) : keys.rows;
  const Source<T> q = rows_of(o.q, queries.begin + tile.first, head, queries.rows - tile.first);
  RunningSoftmax<A> softmax;
  Corner<A> sums = {};
  for (int32_t key = 0; key < seen; key += kSide) {
    Corner<A> s = {};
    multiply_rows(s, q, rows_of(o.k, keys.begin + key, head, keys.rows - key), pass);
    add_terms<false>(s, o, queries, keys, own, tile.first + row_of_thread(),
                     key + column_of_thread());
    A rescale[kEdge];
    softmax.take(s, rescale);
    store_transposed(weights, s);
    BALORA_UNROLL
    for (int e = 0; e < kEdge * kEdge; ++e) sums[e / kEdge][e % kEdge] *= rescale[e / kEdge];
    multiply_columns(sums, weights, rows_of(o.v, keys.begin + key, head, keys.rows - key), column,
                     pass);
  }
  A inverse[kEdge];
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    inverse[i] = softmax.inverse(i);
    const int32_t row = tile.first + row_of_thread() + i;
    if (column == 0 && column_of_thread() == 0 && row < tile.extent()) {
      to.lse[static_cast<int64_t>(tile.begin + row) * o.all_heads + head] = softmax.lse(i);
    }
  }
  write_corner(sums, inverse, to.out.at(tile.begin + tile.first, head), to.out.stride,
               tile.extent() - tile.first, column, o.size);
}

template <typename T>
void run(Context* ctx, const Relative& r, const Outputs<T>& to) {
  using A = Acc<T>;
  constexpr const char* kRow = "relative_attention_forward";
  const PairTiles tiles = plan_pairs(ctx, kRow, r);
  Operands<T> o = operands_of<T>(r);
  if (o.queries.n == 0) return;
  const int32_t chunk = chunk_of(o.all_heads, terms_of_head(o) * static_cast<int64_t>(sizeof(A)));
  reserve_terms(ctx, o, chunk);
  const int64_t slices = ceil_div(o.size, kSide);
  for (o.head = 0; o.head < o.all_heads; o.head += chunk) {
    o.heads = std::min(chunk, o.all_heads - o.head);
    fill_terms(ctx, kRow, o);
    const auto blocks = static_cast<unsigned>(tiles.queries.count * o.heads * slices);
    launch(ctx, kRow, {dim3(blocks), dim3(kBlockThreads), Slices<A>::kBytes + kSquareBytes<A>},
           forward<T>, o, to, tiles.queries, slices);
  }
}

}  // namespace
}  // namespace balora::cuda::relative

namespace balora::cuda {

int32_t relative_attention_forward_kernel(Context* ctx,
                                          const balora_relative_attention_forward& o) {
  dispatch_float(o.r->q->dtype, [&]<typename T>() {
    relative::run<T>(ctx, *o.r, {attention::heads_of<T>(o.out), data_of<Acc<T>>(o.lse)});
  });
  return 0;
}

}  // namespace balora::cuda
