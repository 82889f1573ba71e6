// Attention with relative positions, backward: probabilities come back from the scores and the
// saved log-sum-exp.
//   delta = rowsum(dout * out)
//   dp = dout v^T
//   ds = p (dp - delta)
//   dv = p^T dout
//   dbias = sum of ds by relative position
//   dq = scale (ds k + (ds by position) position_k)
//   dk = scale (ds^T q + (ds^T by position) position_q)
//   dposition_k = scale (ds by position)^T q
//   dposition_q = scale (ds^T by position)^T k
// As in attention_backward_plain.cu a tile of 64 keys (dk, dv) or of 64 queries (dq) stays and the
// other side moves past it, by FMA. The block that owns a row also adds up its ds by position, in
// global memory, four threads a row with a quarter of the positions each; the block that owns a
// tile of queries adds up ds by relative position for the bias, a thread a diagonal. Afterwards
// small kernels sum over rows and tiles. Every number has one owner and one order: no atomics.
//
// 14 T^2 D flops a head and 6 P D a row and position table: DeBERTa-base (8 x 512, H = 12, D = 64,
// P = 512): 42 GFLOP, predicted 3 ms at a quarter of an H100's 60 TFLOP/s in f32.
#include "attention/relative_attention.cuh"

namespace balora::cuda::relative {
namespace {

constexpr const char* kRow = "relative_attention_backward";

// Buffers of the two passes beside the operands. Of queries stay: dq and by position of
// position_k; of keys: dk, dv and position_q.
template <typename T>
struct Pass {
  Heads<const T> dout;
  Heads<T> ds = {}, p = {};       // dq or dk; dv
  const Acc<T>* lse;              // (N,H)
  const Acc<T>* delta;            // (N,H)
  Acc<T>* by_position = nullptr;  // (slices, heads of the chunk, rows that stay, P) or null
  Acc<T>* bias = nullptr;         // (tiles, heads of the chunk, R) or null
  Heads<const T> table = {};      // of by_position
  int32_t rows = 0;               // N or M
  Tiles tiles = {};
  int32_t slices;
};

// Where a block works.
struct Place {
  Tile tile;
  Rows queries, keys;
  int32_t own, head, slice;
  int32_t from, to;  // rows that move

  __device__ int32_t column() const { return slice * kSide; }
};

template <bool kOfKeys, typename T>
__device__ Place place_of(const Operands<T>& o, const Pass<T>& pass) {
  Place p;
  p.tile = pass.tiles.data[blockIdx.x / pass.slices / o.heads];
  p.own = static_cast<int32_t>(blockIdx.x / pass.slices % o.heads);
  p.head = o.head + p.own;
  p.slice = static_cast<int32_t>(blockIdx.x % pass.slices);
  p.queries = o.queries.segment(p.tile.segment), p.keys = o.keys.segment(p.tile.segment);
  const int32_t end = min(p.tile.rows, p.tile.first + kSide);
  p.from = kOfKeys && o.causal ? p.tile.first : 0;
  p.to = kOfKeys ? p.queries.rows : o.causal ? min(p.keys.rows, end) : p.keys.rows;
  if (p.tile.first >= end) p.to = p.from;
  return p;
}

// s, scores, become p, dp becomes ds.
template <bool kOfKeys, typename T>
__device__ void differentiate(Corner<Acc<T>>& s, Corner<Acc<T>>& dp, const Operands<T>& o,
                              const Pass<T>& pass, const Place& p, int32_t row, int32_t column) {
  using A = Acc<T>;
  A lse[kEdge], delta[kEdge];
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    const int32_t query = (kOfKeys ? column : row) + i;
    const bool there = query < p.queries.rows;
    const int64_t at = static_cast<int64_t>(p.queries.begin + query) * o.all_heads + p.head;
    lse[i] = there ? pass.lse[at] : A(0);
    delta[i] = there ? pass.delta[at] : A(0);
  }
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    BALORA_UNROLL
    for (int j = 0; j < kEdge; ++j) {
      const int of = kOfKeys ? j : i;
      const bool unseen = s[i][j] == -INFINITY;
      s[i][j] = unseen ? A(0) : std::exp(s[i][j] - lse[of]);
      dp[i][j] = unseen ? A(0) : s[i][j] * (dp[i][j] - delta[of]);
    }
  }
}

// The block's rows of by_position.
template <typename T>
__device__ Acc<T>* positions_of(const Operands<T>& o, const Pass<T>& pass, const Place& p) {
  const int64_t head = int64_t{p.slice} * o.heads + p.own;
  return pass.by_position + (head * pass.rows + p.tile.begin + p.tile.first) * o.terms.positions;
}
template <typename T>
__device__ Acc<T>* bias_of(const Operands<T>& o, const Pass<T>& pass, const Place& p) {
  const int64_t tile = blockIdx.x / pass.slices / o.heads;
  return pass.bias + (tile * o.heads + p.own) * o.terms.relative;
}

// Adds ds, weights (row that moves, row that stays), by position. A position belongs to one thread
// of its row, whatever moves, so no two meet; neighbours of one position are added
// before memory is.
template <bool kOfKeys, typename T>
__device__ void add_by_position(const Acc<T>* weights, const Operands<T>& o, const Place& p,
                                int32_t moved, Acc<T>* sums) {
  using A = Acc<T>;
  constexpr int32_t kShare = kBlockThreads / kSide;
  const int32_t row = static_cast<int32_t>(threadIdx.x) / kShare;
  const int32_t share = static_cast<int32_t>(threadIdx.x) % kShare;
  const int32_t stays = p.tile.first + row, count = min(kSide, p.to - moved);
  if (stays >= p.tile.rows) return;
  A* own = sums + int64_t{row} * o.terms.positions;
  int32_t at = -1;
  A sum = 0;
  for (int32_t m = 0; m < count; ++m) {
    const int32_t place =
        kOfKeys ? o.terms.place(moved + m, stays) : o.terms.place(stays, moved + m);
    const int32_t position = o.terms.position(place);
    if (position % kShare != share) continue;
    if (position != at) {
      if (at >= 0) own[at] += sum;
      at = position, sum = 0;
    }
    sum += weights[m * kTransposedPitch + row];
  }
  if (at >= 0) own[at] += sum;
}

// Adds ds, weights (key, query), by relative position: a thread has a diagonal.
template <typename T>
__device__ void add_by_diagonal(const Acc<T>* weights, const Operands<T>& o, const Place& p,
                                int32_t key, Acc<T>* sums) {
  const int32_t diagonal = static_cast<int32_t>(threadIdx.x) - (kSide - 1);
  const int32_t place = key - p.tile.first + diagonal + (o.terms.relative - 1) / 2;
  if (diagonal >= kSide || place < 0 || place >= o.terms.relative) return;
  Acc<T> sum = 0;
  for (int32_t q = max(0, -diagonal); q < min(kSide, kSide - diagonal); ++q) {
    sum += weights[(q + diagonal) * kTransposedPitch + q];
  }
  sums[place] += sum;
}

// sums += (ds by position) table, the rows of the block by the columns of its slice.
template <typename T>
__device__ void multiply_positions(Corner<Acc<T>>& sums, Acc<T>* weights, const Operands<T>& o,
                                   const Pass<T>& pass, const Place& p, const Acc<T>* by_position,
                                   const Slices<Acc<T>>& slices) {
  const int32_t positions = o.terms.positions, count = p.tile.rows - p.tile.first;
  for (int32_t first = 0; first < positions; first += kSide) {
    __syncthreads();  // weights are read, sums by position are written
    for (int32_t i = threadIdx.x; i < kSide * kSide; i += kBlockThreads) {
      const int32_t row = i / kSide, position = first + i % kSide;
      const bool there = row < count && position < positions;
      weights[i % kSide * kTransposedPitch + row] =
          there ? by_position[int64_t{row} * positions + position] : Acc<T>(0);
    }
    multiply_columns(sums, weights, rows_of(pass.table, first, p.head, positions - first),
                     p.column(), slices);
  }
}

template <typename T>
__device__ void clear_sums(Acc<T>* sums, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += kBlockThreads) sums[i] = 0;
}

template <typename T>
__device__ void write_scaled(const Corner<Acc<T>>& sums, Acc<T> factor, const Heads<T>& to,
                             const Place& p) {
  const Acc<T> factors[kEdge] = {factor, factor, factor, factor};
  write_corner(sums, factors, to.at(p.tile.begin + p.tile.first, p.head), to.stride,
               p.tile.extent() - p.tile.first, p.column(), to.size);
}

template <typename T, bool kOfKeys>
__global__ void __launch_bounds__(kBlockThreads, 1) backward(Operands<T> o, Pass<T> pass) {
  using A = Acc<T>;
  const Place p = place_of<kOfKeys>(o, pass);
  if (p.tile.first >= p.tile.extent()) return;
  SharedMemory shared;
  const Slices<A> slices(shared);
  A* weights = shared.array<A>(kSide * kTransposedPitch);
  const int32_t count = p.tile.rows - p.tile.first;
  A* positions = pass.by_position ? positions_of(o, pass, p) : nullptr;
  A* bias = pass.bias && p.slice == 0 ? bias_of(o, pass, p) : nullptr;
  if (positions && count > 0) {
    clear_sums<T>(positions, int64_t{min(count, kSide)} * o.terms.positions);
  }
  if (bias) clear_sums<T>(bias, o.terms.relative);
  const int64_t stays = p.tile.begin + p.tile.first;
  const int64_t moves = kOfKeys ? p.queries.begin : p.keys.begin;
  const Source<T> staying0 = rows_of(kOfKeys ? o.k : o.q, stays, p.head, count);
  const Source<T> staying1 = rows_of(kOfKeys ? o.v : pass.dout, stays, p.head, count);
  Corner<A> sum_ds = {}, sum_p = {};
  for (int32_t moved = p.from; moved < p.to; moved += kSide) {
    const int32_t there = p.to - moved;
    const Source<T> moving0 = rows_of(kOfKeys ? o.q : o.k, moves + moved, p.head, there);
    const Source<T> moving1 = rows_of(kOfKeys ? pass.dout : o.v, moves + moved, p.head, there);
    Corner<A> s = {}, dp = {};
    multiply_rows(s, staying0, moving0, slices);
    multiply_rows(dp, staying1, moving1, slices);
    const int32_t row = p.tile.first + row_of_thread(), column = moved + column_of_thread();
    add_terms<kOfKeys>(s, o, p.queries, p.keys, p.own, row, column);
    differentiate<kOfKeys>(s, dp, o, pass, p, row, column);
    if (kOfKeys) {
      store_transposed(weights, s);
      multiply_columns(sum_p, weights, moving1, p.column(), slices);
      __syncthreads();  // the weights are read
    }
    store_transposed(weights, dp);
    multiply_columns(sum_ds, weights, moving0, p.column(), slices);
    if (positions) add_by_position<kOfKeys>(weights, o, p, moved, positions);
    if (bias) add_by_diagonal(weights, o, p, moved, bias);
  }
  if (positions) multiply_positions(sum_ds, weights, o, pass, p, positions, slices);
  write_scaled(sum_ds, o.scale, pass.ds, p);
  if (kOfKeys) write_scaled(sum_p, A(1), pass.p, p);
}

// out (P,H,D) = scale (ds by position)^T x over all rows that take part.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    sum_positions(Operands<T> o, Pass<T> pass, Heads<const T> x, Heads<T> out) {
  using A = Acc<T>;
  SharedMemory shared;
  const Slices<A> slices(shared);
  A* weights = shared.array<A>(kSide * kTransposedPitch);
  const int32_t positions = o.terms.positions;
  const auto slice = static_cast<int32_t>(blockIdx.x % pass.slices);
  const auto own = static_cast<int32_t>(blockIdx.x / pass.slices % o.heads);
  const auto first = static_cast<int32_t>(blockIdx.x / pass.slices / o.heads) * kSide;
  const A* from = pass.by_position + (int64_t{slice} * o.heads + own) * pass.rows * positions;
  Corner<A> sums = {};
  for (int64_t t = 0; t < pass.tiles.count; ++t) {
    const Tile tile = pass.tiles.data[t];
    const int32_t count = tile.rows - tile.first;
    if (count <= 0) continue;
    const int64_t row = tile.begin + tile.first;
    __syncthreads();  // the weights are read
    for (int32_t i = threadIdx.x; i < kSide * kSide; i += kBlockThreads) {
      const int32_t r = i / kSide, position = first + i % kSide;
      const bool there = r < count && position < positions;
      weights[r * kTransposedPitch + i % kSide] =
          there ? from[(row + r) * positions + position] : A(0);
    }
    multiply_columns(sums, weights, rows_of(x, row, o.head + own, count), slice * kSide, slices);
  }
  const A factors[kEdge] = {o.scale, o.scale, o.scale, o.scale};
  write_corner(sums, factors, out.at(first, o.head + own), out.stride, positions - first,
               slice * kSide, out.size);
}

// bias (R,H): the tiles' sums in order; a thread each (head, place).
template <typename T>
__global__ void sum_bias(Operands<T> o, Pass<T> pass, T* bias) {
  const int32_t relative = o.terms.relative;
  for (int64_t i = thread_index(); i < int64_t{o.heads} * relative; i += thread_count()) {
    Acc<T> sum = 0;
    for (int64_t t = 0; t < pass.tiles.count; ++t) {
      const Tile& tile = pass.tiles.data[t];
      if (tile.first < tile.extent()) sum += pass.bias[t * o.heads * relative + i];
    }
    bias[i % relative * o.all_heads + o.head + i / relative] = store<T>(sum);
  }
}

template <typename T>
class Backward {
 public:
  using A = Acc<T>;

  Backward(Context* ctx, const Relative& r, const View* dout, const View* out, const View* lse,
           const RelativeGradients& g)
      : ctx_(ctx), g_(g), o_(operands_of<T>(r)), tiles_(plan_pairs(ctx, kRow, r)) {
    const auto n = o_.queries.n, m = o_.keys.n;
    A* delta = workspace<A>(ctx, int64_t{n} * o_.all_heads);
    row_dots<T>(ctx, kRow, heads_of<const T>(dout), heads_of<const T>(out), n, o_.all_heads, delta);
    const auto slices = static_cast<int32_t>(ceil_div(o_.size, kSide));
    const Pass<T> pass{
        .dout = heads_of<const T>(dout), .lse = data_of<A>(lse), .delta = delta, .slices = slices};
    of_queries_ = of_keys_ = pass;
    of_queries_.ds = heads_of<T>(g.q), of_queries_.table = o_.position_k, of_queries_.rows = n;
    of_queries_.tiles = tiles_.queries;
    of_keys_.ds = heads_of<T>(g.k), of_keys_.p = heads_of<T>(g.v), of_keys_.rows = m;
    of_keys_.table = o_.position_q, of_keys_.tiles = tiles_.keys;
  }

  void run() {
    const int32_t chunk = reserve();
    for (o_.head = 0; o_.head < o_.all_heads; o_.head += chunk) {
      o_.heads = std::min(chunk, o_.all_heads - o_.head);
      fill_terms(ctx_, kRow, o_);
      start(backward<T, false>, of_queries_);
      start(backward<T, true>, of_keys_);
      sum(of_queries_, o_.q, g_.position_k);
      sum(of_keys_, o_.k, g_.position_q);
      if (!of_queries_.bias) continue;
      launch(ctx_, kRow, elements(int64_t{o_.heads} * o_.terms.relative), sum_bias<T>, o_,
             of_queries_, data_of<T>(g_.bias));
    }
  }

 private:
  // Memory of a chunk of heads; returns how many it has.
  int32_t reserve() {
    const int64_t slices = of_queries_.slices, terms = terms_of_head(o_);
    const int64_t diagonals = g_.bias ? tiles_.queries.count * o_.terms.relative : 0;
    const int32_t heads = chunk_of(
        o_.all_heads, (terms * (1 + slices) + diagonals) * static_cast<int64_t>(sizeof(A)));
    reserve_terms(ctx_, o_, heads);
    for (Pass<T>* pass : {&of_queries_, &of_keys_}) {
      if (!pass->table.data) continue;
      pass->by_position =
          workspace<A>(ctx_, slices * heads * pass->rows * int64_t{o_.terms.positions});
    }
    if (g_.bias) of_queries_.bias = workspace<A>(ctx_, heads * diagonals);
    return heads;
  }

  Grid grid(int64_t tiles) const {
    const auto blocks = static_cast<unsigned>(tiles * o_.heads * of_queries_.slices);
    return {dim3(blocks), dim3(kBlockThreads), Slices<A>::kBytes + kSquareBytes<A>};
  }
  void start(void (*kernel)(Operands<T>, Pass<T>), const Pass<T>& pass) {
    launch(ctx_, kRow, grid(pass.tiles.count), kernel, o_, pass);
  }
  void sum(const Pass<T>& pass, Heads<const T> x, const View* out) {
    if (!pass.by_position || !out) return;
    launch(ctx_, kRow, grid(ceil_div(o_.terms.positions, kSide)), sum_positions<T>, o_, pass, x,
           heads_of<T>(out));
  }

  Context* ctx_;
  RelativeGradients g_;
  Operands<T> o_;
  PairTiles tiles_;
  Pass<T> of_queries_, of_keys_;
};

}  // namespace
}  // namespace balora::cuda::relative

namespace balora::cuda {

int32_t relative_attention_backward_kernel(Context* ctx,
                                           const balora_relative_attention_backward& o) {
  dispatch_float(o.r->q->dtype, [&]<typename T>() {
    relative::Backward<T>(ctx, *o.r, o.dout, o.out, o.lse, *o.gradients).run();
  });
  return 0;
}

}  // namespace balora::cuda
