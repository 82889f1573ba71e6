// Attention backward by fused multiply-add: f32, f64, and heads that the tensor cores' tiles do not
// hold. As in attention_backward.cu a tile of keys, or of queries, stays and the other side moves
// past it; 64 rows of either, and 64 columns of the sums a block: heads with more are cut into
// slices, each of which computes scores and dp again.
//
// 14 T_seen D flops a query and head for D <= 64, 22 for D = 128.
#include "attention/attention_blocks.cuh"
#include "attention/attention_plain.cuh"

namespace balora::cuda::attention {
namespace {

template <typename T>
struct Place {
  Tile tile;
  int32_t head, column;  // of the rows that stay, of the sums
  int32_t from, to;      // rows that move
};

template <bool kOfKeys, typename T>
__device__ Place<T> place_of(const PlainBackward<T>& o, int32_t slices) {
  const int32_t heads = kOfKeys ? o.g.heads / o.g.group : o.g.heads;
  const auto index = static_cast<int32_t>(blockIdx.x / slices / heads);
  Place<T> p;
  p.tile = o.tiles.data[kOfKeys ? index : o.tiles.count - 1 - index];
  p.head = static_cast<int32_t>(blockIdx.x / slices % heads);
  p.column = static_cast<int32_t>(blockIdx.x % slices) * kSide;
  const int32_t first = p.tile.first, rows = p.tile.rows, end = min(rows, first + kSide);
  const Mask& mask = o.g.mask;
  p.from = (kOfKeys ? mask.first_query(first) : mask.first_key(first)) / kSide * kSide;
  if (kOfKeys) p.from = max(p.from, p.tile.skip);
  p.to = kOfKeys ? mask.last_query(end - 1, rows) : mask.last_key(end - 1, rows);
  if (first >= end) p.to = p.from;
  return p;
}

// s becomes p, dp becomes ds without its scale; 0 where a query does not see a key.
template <bool kOfKeys, typename T>
__device__ void differentiate(Corner<Acc<T>>& s, Corner<Acc<T>>& dp, const PlainBackward<T>& o,
                              const Place<T>& p, int32_t moved, int32_t head) {
  using A = Acc<T>;
  A lse[kEdge], delta[kEdge];
  const int32_t row = p.tile.first + row_of_thread(), column = moved + column_of_thread();
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    const int32_t query = (kOfKeys ? column : row) + i;
    const int64_t at = p.tile.query(query) * o.g.heads + head;
    lse[i] = query < p.tile.rows ? o.lse[at] : A(0);
    delta[i] = query < p.tile.rows ? o.delta[at] : A(0);
  }
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    BALORA_UNROLL
    for (int j = 0; j < kEdge; ++j) {
      const int of = kOfKeys ? j : i;
      A score = s[i][j] * o.g.scale, slope = 1;
      if (o.g.softcap != 0) {
        const A ratio = std::tanh(score / o.g.softcap);
        score = o.g.softcap * ratio, slope = 1 - ratio * ratio;
      }
      const int32_t query = kOfKeys ? column + j : row + i, key = kOfKeys ? row + i : column + j;
      const bool seen = o.g.mask.sees(query, key, p.tile.rows);
      s[i][j] = seen ? std::exp(score - lse[of]) : A(0);
      dp[i][j] = seen ? s[i][j] * (dp[i][j] - delta[of]) * slope : A(0);
    }
  }
}

template <typename T, bool kOfKeys>
__global__ void __launch_bounds__(kBlockThreads, 1)
    backward_plain(PlainBackward<T> o, int32_t slices) {
  using A = Acc<T>;
  const Place<T> p = place_of<kOfKeys>(o, slices);
  if (p.tile.first >= p.tile.extent()) return;
  SharedMemory shared;
  const Slices<A> pass(shared);
  A* weights = shared.array<A>(kSide * kTransposedPitch);
  const int64_t row = kOfKeys ? p.tile.key(p.tile.first) : p.tile.query(p.tile.first);
  const int32_t count = p.tile.rows - p.tile.first;
  const Source<T> staying0 = rows_of(kOfKeys ? o.k : o.q, row, p.head, count);
  const Source<T> staying1 = rows_of(kOfKeys ? o.v : o.dout, row, p.head, count);
  Corner<A> sum_ds = {}, sum_p = {};
  for (int32_t h = 0; h < (kOfKeys ? o.g.group : 1); ++h) {
    const int32_t head = kOfKeys ? p.head * o.g.group + h : p.head;
    const int32_t other = kOfKeys ? head : head / o.g.group;
    for (int32_t moved = p.from; moved < p.to; moved += kSide) {
      const int32_t there = p.tile.rows - moved;
      const int64_t at = kOfKeys ? p.tile.query(moved) : p.tile.key(moved);
      const Source<T> moving0 = rows_of(kOfKeys ? o.q : o.k, at, other, there);
      const Source<T> moving1 = rows_of(kOfKeys ? o.dout : o.v, at, other, there);
      Corner<A> s = {}, dp = {};
      multiply_rows(s, staying0, moving0, pass);
      multiply_rows(dp, staying1, moving1, pass);
      differentiate<kOfKeys>(s, dp, o, p, moved, head);
      if (kOfKeys) {
        store_transposed(weights, s);
        multiply_columns(sum_p, weights, moving1, p.column, pass);
        __syncthreads();  // the weights are read
      }
      store_transposed(weights, dp);
      multiply_columns(sum_ds, weights, moving0, p.column, pass);
    }
  }
  const A scales[kEdge] = {o.g.scale, o.g.scale, o.g.scale, o.g.scale}, ones[kEdge] = {1, 1, 1, 1};
  const int32_t rows = p.tile.extent() - p.tile.first;
  const Heads<T>& out = kOfKeys ? o.dk : o.dq;
  write_corner(sum_ds, scales, out.at(row, p.head), out.stride, rows, p.column, o.g.size);
  if (!kOfKeys) return;
  write_corner(sum_p, ones, o.dv.at(row, p.head), o.dv.stride, rows, p.column, o.g.size);
}

}  // namespace

template <typename T>
void plain_backward(Context* ctx, PlainBackward<T> o, const Segments& segments) {
  using A = Acc<T>;
  constexpr const char* kRow = "attention_backward";
  const int64_t slices = ceil_div(o.g.size, kSide);
  const int64_t shared = Slices<A>::kBytes + kSquareBytes<A>;
  const auto blocks = [&](int64_t heads) {
    return dim3(static_cast<unsigned>(o.tiles.count * slices * heads));
  };
  o.tiles = plan_tiles(ctx, kRow, segments, false, kSide);
  launch(ctx, kRow, {blocks(o.g.heads / o.g.group), dim3(kBlockThreads), shared},
         backward_plain<T, true>, o, slices);
  if (segments.cu_queries) o.tiles = plan_tiles(ctx, kRow, segments, true, kSide);
  launch(ctx, kRow, {blocks(o.g.heads), dim3(kBlockThreads), shared}, backward_plain<T, false>, o,
         slices);
}

#define PLAIN_BACKWARD(T) \
  template void plain_backward<T>(Context*, PlainBackward<T>, const Segments&);
PLAIN_BACKWARD(float)
PLAIN_BACKWARD(double)
PLAIN_BACKWARD(bf16)
PLAIN_BACKWARD(f16)
#undef PLAIN_BACKWARD

}  // namespace balora::cuda::attention
