// Attention backward: probabilities come back from q, k and the saved log-sum-exp, tile by tile.
//   delta = rowsum(dout * out)
//   dp = dout v^T
//   ds = p (dp - delta)
//   dv = p^T dout
//   dk = scale ds^T q
//   dq = scale ds k
// A block owns a tile of keys and walks the queries of every head of its group that see them (dk,
// dv), or owns a tile of queries of one head and walks its keys (dq): every sum has one owner and
// one order, so nothing is added atomically and bits repeat. The price is that scores and dp are
// computed twice: seven products for five.
//
// bf16, f16 (here): both passes are one kernel. A tile of 16 rows a warp stays, tiles of 32 rows of
// the other side (64 where D <= 64) move past it, the next on its way while one is used. Scores and
// dp have the rows that stay as rows, so p and ds are A operands of the sums without leaving the
// registers. With D > 128 two warps share their rows of keys and halve the columns of their sums.
// f32, f64, D > 256: attention_backward_plain.cu.
//
// 14 T_seen D flops a query and head. LLaMA-7B's shape (4 x 512, H = 32, D = 128, causal): 30
// GFLOP. A product of 16 rows reads 256 bytes of shared memory for 4096 flops, 2048 flops a clock
// and multiprocessor: mma.sync's peak on an A100, half of wgmma's on an H100. Predicted at 60 % of
// that: 0.1 ms on an H100, 0.16 ms on an A100.
#include "attention/attention_mma.cuh"
#include "attention/attention_plain.cuh"

namespace balora::cuda::attention::gradient {
namespace {

// ---- Arithmetic of a warp -----------------------------------------------------------------------
// The arithmetic of attention's backward on tensor cores: where a block and its warps work, and a
// warp's 16 rows that stay against one tile that moves, probabilities, gradients of scores and
// sums, all in registers.

template <typename T>
struct Operands {
  Heads<const T> dout, q, k, v;
  Heads<T> dq, dk, dv;
  const float* lse;    // (M,H)
  const float* delta;  // (M,H)
  Tiles tiles = {};    // set for each pass, as is packs
  Geometry<float> g;
  bool packs = false;  // rows move in 16-byte accesses
};

template <int kSize, bool kOfKeys>
struct Plan {
  static constexpr int kColumnWarps = kOfKeys && kSize > 128 ? 2 : 1;
  static constexpr int kRows = 16 * kMmaWarps / kColumnWarps;  // that stay
  static constexpr int kColumns = kSize / kColumnWarps;        // of a warp's sums
  static constexpr int kMoving = kSize > 64 ? 32 : 64;
  static constexpr int kStages = kSize > 128 ? 1 : 2;
};

// Where a block works, and a warp in it. Steps go over the heads and, in each, over the tiles that
// move, from `from` on.
struct Place {
  Tile tile;
  int32_t head;  // of the rows that stay
  int32_t from, steps_of_head, steps;
  int32_t row;     // of the warp, the first
  int32_t column;  // of the warp's sums, the first
};

template <int kSize, bool kOfKeys, typename T>
__device__ Place place_of(const Operands<T>& o) {
  using P = Plan<kSize, kOfKeys>;
  const int32_t heads = kOfKeys ? o.g.heads / o.g.group : o.g.heads;
  const auto index = static_cast<int32_t>(blockIdx.x / heads);
  Place p;
  // The tiles with the most to do start first: early keys, late queries.
  p.tile = o.tiles.data[kOfKeys ? index : o.tiles.count - 1 - index];
  p.head = static_cast<int32_t>(blockIdx.x % heads);
  const int32_t end = min(p.tile.rows, p.tile.first + P::kRows);
  const Mask& mask = o.g.mask;
  const int32_t first = kOfKeys ? mask.first_query(p.tile.first) : mask.first_key(p.tile.first);
  const int32_t last =
      kOfKeys ? mask.last_query(end - 1, p.tile.rows) : mask.last_key(end - 1, p.tile.rows);
  p.from = first / P::kMoving * P::kMoving;
  if (kOfKeys) p.from = max(p.from, p.tile.skip);
  const bool any = p.tile.first < end && p.from < last;
  p.steps_of_head = any ? (last - p.from + P::kMoving - 1) / P::kMoving : 0;
  p.steps = p.steps_of_head * (kOfKeys ? o.g.group : 1);
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarp;
  p.row = p.tile.first + warp / P::kColumnWarps * 16;
  p.column = warp % P::kColumnWarps * P::kColumns;
  return p;
}

template <int kSize, bool kOfKeys>
struct Sums {
  static constexpr int kParts = Plan<kSize, kOfKeys>::kColumns / 8;
  float ds[kParts][4] = {};               // of dk or dq
  float p[kOfKeys ? kParts : 1][4] = {};  // of dv
};

// Statistics of the queries that this lane has scores of, by the pair of columns (keys stay) or
// by the half of the rows: lse in units of log 2, delta.
template <int kSize, bool kOfKeys>
struct QueryNumbers {
  static constexpr int kPairs = kOfKeys ? Plan<kSize, kOfKeys>::kMoving / 8 : 1;
  float lse[kPairs][2], delta[kPairs][2];

  template <typename T>
  __device__ void read(const Operands<T>& o, const Tile& tile, int32_t first, int32_t head) {
    const int lane = threadIdx.x % kWarp;
    BALORA_UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) {
      const int32_t query = first + (kOfKeys ? i / 2 * 8 + lane % 4 * 2 + i % 2 : lane / 4 + 8 * i);
      const bool there = query < tile.rows;
      const int64_t at = tile.query(query) * o.g.heads + head;
      lse[i / 2][i % 2] = there ? o.lse[at] * kLog2e : 0.0f;
      delta[i / 2][i % 2] = there ? o.delta[at] : 0.0f;
    }
  }
};

template <int kColumns>
using Scores = float[kColumns / 8][4];

// s = staying[0] moving[0]^T, dp = staying[1] moving[1]^T for a warp's 16 rows.
template <int kSize, int kMoving, typename T>
__device__ inline void multiply_rows(Scores<kMoving>& s, Scores<kMoving>& dp, const T* staying0,
                                     const T* staying1, const T* moving0, const T* moving1) {
  BALORA_UNROLL
  for (int d = 0; d < kSize; d += 16) {
    uint32_t a0[4], a1[4];
    load_a<kSize>(a0, staying0 + d);
    load_a<kSize>(a1, staying1 + d);
    BALORA_UNROLL
    for (int n = 0; n < kMoving / 16; ++n) {
      uint32_t b[2][2];
      load_b<kSize>(b, moving0 + 16 * n * kPitch<kSize> + d);
      Mma<T>::multiply(s[2 * n], a0, b[0]);
      Mma<T>::multiply(s[2 * n + 1], a0, b[1]);
      load_b<kSize>(b, moving1 + 16 * n * kPitch<kSize> + d);
      Mma<T>::multiply(dp[2 * n], a1, b[0]);
      Mma<T>::multiply(dp[2 * n + 1], a1, b[1]);
    }
  }
}

// s becomes p, dp becomes ds without its scale; 0 where a query does not see a key.
template <int kSize, bool kOfKeys, int kMoving>
__device__ inline void differentiate(Scores<kMoving>& s, Scores<kMoving>& dp, const Place& place,
                                     const Geometry<float>& g, int32_t moved,
                                     const QueryNumbers<kSize, kOfKeys>& of) {
  const Mask& mask = g.mask;
  const int32_t rows = place.tile.rows, row_end = place.row + 16, moved_end = moved + kMoving;
  const bool whole = kOfKeys
                         ? mask.all(moved, moved_end, place.row, row_end, rows) && row_end <= rows
                         : mask.all(place.row, row_end, moved, moved_end, rows);
  const int lane = threadIdx.x % kWarp;
  BALORA_UNROLL
  for (int i = 0; i < 4 * (kMoving / 8); ++i) {
    const int n = i / 4, e = i % 4;
    const float lse = kOfKeys ? of.lse[n % of.kPairs][e % 2] : of.lse[0][e / 2];
    const float delta = kOfKeys ? of.delta[n % of.kPairs][e % 2] : of.delta[0][e / 2];
    float slope = 1, p = 0;
    if (g.softcap == 0) {
      p = exp2_approx(s[n][e] * (g.scale * kLog2e) - lse);
    } else {
      const float ratio = tanh_approx(s[n][e] * g.scale / g.softcap);
      p = exp2_approx(g.softcap * ratio * kLog2e - lse);
      slope = 1 - ratio * ratio;
    }
    float ds = p * (dp[n][e] - delta) * slope;
    if (!whole) {
      const int32_t row = place.row + lane / 4 + e / 2 * 8;
      const int32_t column = moved + n * 8 + lane % 4 * 2 + e % 2;
      if (!mask.sees(kOfKeys ? column : row, kOfKeys ? row : column, rows)) p = ds = 0;
    }
    s[n][e] = p, dp[n][e] = ds;
  }
}

// Adds p moving[1] (keys stay) and ds moving[0], columns from the warp's first on.
template <int kSize, bool kOfKeys, int kMoving, typename T>
__device__ inline void multiply_columns(Sums<kSize, kOfKeys>& sums, const Scores<kMoving>& p,
                                        const Scores<kMoving>& ds, const T* moving0,
                                        const T* moving1) {
  BALORA_UNROLL
  for (int j = 0; j < kMoving / 16; ++j) {
    uint32_t a_ds[4], a_p[4];
    as_a<T>(a_ds, ds[2 * j], ds[2 * j + 1]);
    if constexpr (kOfKeys) as_a<T>(a_p, p[2 * j], p[2 * j + 1]);
    BALORA_UNROLL
    for (int n = 0; n < sums.kParts / 2; ++n) {
      uint32_t b[2][2];
      load_b_transposed<kSize>(b, moving0 + 16 * j * kPitch<kSize> + 16 * n);
      Mma<T>::multiply(sums.ds[2 * n], a_ds, b[0]);
      Mma<T>::multiply(sums.ds[2 * n + 1], a_ds, b[1]);
      if constexpr (kOfKeys) {
        load_b_transposed<kSize>(b, moving1 + 16 * j * kPitch<kSize> + 16 * n);
        Mma<T>::multiply(sums.p[2 * n], a_p, b[0]);
        Mma<T>::multiply(sums.p[2 * n + 1], a_p, b[1]);
      }
    }
  }
}

// ---- Kernel -------------------------------------------------------------------------------------

// The tiles in shared memory: of keys stay k and v, and q and dout move; of queries the converse.
template <typename T, int kSize, bool kOfKeys>
struct Tables {
  using P = Plan<kSize, kOfKeys>;
  static constexpr int kStaying = P::kRows * kPitch<kSize>, kMoved = P::kMoving * kPitch<kSize>;
  T* staying[2];
  T* moving[2];  // stage by stage

  __device__ explicit Tables(SharedMemory& shared) {
    for (T*& tile : staying) tile = shared.array<T>(kStaying);
    for (T*& tile : moving) tile = shared.array<T>(P::kStages * kMoved);
  }
  static constexpr int64_t kBytes =
      2 * shared_bytes<T>(kStaying) + 2 * shared_bytes<T>(P::kStages * kMoved);

  __device__ void fetch_staying(const Operands<T>& o, const Place& p) const {
    const Heads<const T>&a = kOfKeys ? o.k : o.q, &b = kOfKeys ? o.v : o.dout;
    const int64_t row = kOfKeys ? p.tile.key(p.tile.first) : p.tile.query(p.tile.first);
    const int32_t count = p.tile.rows - p.tile.first;
    fetch_tile<kSize, P::kRows>(staying[0], a.at(row, p.head), a.stride, count, a.size, o.packs);
    fetch_tile<kSize, P::kRows>(staying[1], b.at(row, p.head), b.stride, count, b.size, o.packs);
  }
  __device__ void fetch_moving(const Operands<T>& o, const Place& p, int32_t first, int32_t head,
                               int stage) const {
    const Heads<const T>&a = kOfKeys ? o.q : o.k, &b = kOfKeys ? o.dout : o.v;
    const int64_t row = kOfKeys ? p.tile.query(first) : p.tile.key(first);
    const int32_t count = p.tile.rows - first, at = stage * kMoved;
    fetch_tile<kSize, P::kMoving>(moving[0] + at, a.at(row, head), a.stride, count, a.size,
                                  o.packs);
    fetch_tile<kSize, P::kMoving>(moving[1] + at, b.at(row, head), b.stride, count, b.size,
                                  o.packs);
  }
};

template <typename T, int kSize, bool kOfKeys>
__device__ inline void write_sums(const Operands<T>& o, const Place& p,
                                  const Sums<kSize, kOfKeys>& sums,
                                  const Tables<T, kSize, kOfKeys>& tables) {
  using P = Plan<kSize, kOfKeys>;
  const int32_t at = (p.row - p.tile.first) * kPitch<kSize> + p.column;
  const int32_t count = p.tile.extent() - p.row, size = o.g.size - p.column;
  const Heads<T>& out = kOfKeys ? o.dk : o.dq;
  const int64_t row = kOfKeys ? p.tile.key(p.row) : p.tile.query(p.row);
  store_rows<kSize, P::kColumns, T>(
      tables.staying[0] + at, sums.ds, o.g.scale, o.g.scale,
      {out.at(row, p.head) + p.column, out.stride, count, size, o.packs});
  if constexpr (kOfKeys) {
    store_rows<kSize, P::kColumns, T>(
        tables.staying[1] + at, sums.p, 1, 1,
        {o.dv.at(row, p.head) + p.column, o.dv.stride, count, size, o.packs});
  }
}

template <typename T, int kSize, bool kOfKeys>
__global__ void __launch_bounds__(kMmaThreads) backward(Operands<T> o) {
  using P = Plan<kSize, kOfKeys>;
  const Place p = place_of<kSize, kOfKeys>(o);
  if (p.tile.first >= p.tile.extent()) return;
  SharedMemory shared;
  const Tables<T, kSize, kOfKeys> tables(shared);
  tables.fetch_staying(o, p);
  const auto moved = [&](int32_t step) { return p.from + step % p.steps_of_head * P::kMoving; };
  const auto head = [&](int32_t step) {
    return kOfKeys ? p.head * o.g.group + step / p.steps_of_head : p.head / o.g.group;
  };
  const auto fetch = [&](int32_t step) {
    if (step < p.steps) {
      tables.fetch_moving(o, p, moved(step), head(step), step % P::kStages);
    }
    cp_async_commit();
  };
  const int32_t own = (p.row - p.tile.first) * kPitch<kSize>;
  Sums<kSize, kOfKeys> sums;
  QueryNumbers<kSize, kOfKeys> numbers;
  if (!kOfKeys) numbers.read(o, p.tile, p.row, p.head);
  fetch(0);
  for (int32_t step = 0; step < p.steps; ++step) {
    const int32_t first = moved(step);
    if (kOfKeys) numbers.read(o, p.tile, first, head(step));
    cp_async_wait<0>();
    __syncthreads();  // this step's tiles are there, those of the one before are read
    if (P::kStages > 1) fetch(step + 1);
    const bool met = kOfKeys
                         ? o.g.mask.any(first, first + P::kMoving, p.row,
                                        min(p.row + 16, p.tile.rows), p.tile.rows)
                         : o.g.mask.any(p.row, p.row + 16, first, first + P::kMoving, p.tile.rows);
    if (met) {
      const int at = step % P::kStages * tables.kMoved;
      const T *moving0 = tables.moving[0] + at, *moving1 = tables.moving[1] + at;
      Scores<P::kMoving> s = {}, dp = {};
      multiply_rows<kSize, P::kMoving>(s, dp, tables.staying[0] + own, tables.staying[1] + own,
                                       moving0, moving1);
      differentiate<kSize, kOfKeys, P::kMoving>(s, dp, p, o.g, first, numbers);
      multiply_columns<kSize, kOfKeys, P::kMoving>(sums, s, dp, moving0 + p.column,
                                                   moving1 + p.column);
    }
    if (P::kStages > 1) continue;
    __syncthreads();
    fetch(step + 1);
  }
  cp_async_wait<0>();
  __syncthreads();  // warps that share rows have read them
  write_sums(o, p, sums, tables);
}

template <typename T, int kSize, bool kOfKeys>
void run(Context* ctx, Operands<T> o, const Segments& segments) {
  constexpr const char* kRow = "attention_backward";
  o.tiles = plan_tiles(ctx, kRow, segments, !kOfKeys, Plan<kSize, kOfKeys>::kRows);
  const int32_t heads = kOfKeys ? o.g.heads / o.g.group : o.g.heads;
  launch(ctx, kRow,
         {dim3(static_cast<unsigned>(o.tiles.count * heads)), dim3(kMmaThreads),
          Tables<T, kSize, kOfKeys>::kBytes},
         backward<T, kSize, kOfKeys>, o);
}

template <typename T>
void run_mma(Context* ctx, Operands<T> o, const Segments& segments) {
  o.packs = in_packs(o.q) && in_packs(o.k) && in_packs(o.v) && in_packs(o.dout) && in_packs(o.dq) &&
            in_packs(o.dk) && in_packs(o.dv);
  const auto both = [&]<int kSize>() {
    run<T, kSize, true>(ctx, o, segments);
    run<T, kSize, false>(ctx, o, segments);
  };
  if (o.g.size <= 64) return both.template operator()<64>();
  if (o.g.size <= 96) return both.template operator()<96>();
  if (o.g.size <= 128) return both.template operator()<128>();
  both.template operator()<256>();
}

}  // namespace
}  // namespace balora::cuda::attention::gradient

namespace balora::cuda {
namespace {

// The operands as the kernels of one kind take them; the plan of a pass is set later.
template <typename Operands, typename T>
Operands operands_of(const balora_attention_backward& o, const Acc<T>* delta,
                     const attention::Geometry<Acc<T>>& g) {
  using attention::heads_of;
  return {.dout = heads_of<const T>(o.dout),
          .q = heads_of<const T>(o.q),
          .k = heads_of<const T>(o.k),
          .v = heads_of<const T>(o.v),
          .dq = heads_of<T>(o.dq),
          .dk = heads_of<T>(o.dk),
          .dv = heads_of<T>(o.dv),
          .lse = data_of<Acc<T>>(o.lse),
          .delta = delta,
          .g = g};
}

}  // namespace

int32_t attention_backward_kernel(Context* ctx, const balora_attention_backward& o) {
  if (o.sinks) throw UnsupportedError("attention: sinks are not computed on CUDA devices");
  using namespace attention;
  const int64_t m = o.q->shape[0];
  const Segments segments = segments_of(o);
  if (segments.n == 0) return 0;
  dispatch_float(o.q->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const auto g = geometry_of<A>(o);
    A* delta = workspace<A>(ctx, m * g.heads);
    if (m > 0) {
      row_dots<T>(ctx, "attention_backward", heads_of<const T>(o.dout), heads_of<const T>(o.out), m,
                  g.heads, delta);
    }
    if constexpr (sizeof(T) == 2) {
      if (g.size <= 256) {
        return gradient::run_mma(ctx, operands_of<gradient::Operands<T>, T>(o, delta, g), segments);
      }
    }
    plain_backward<T>(ctx, operands_of<PlainBackward<T>, T>(o, delta, g), segments);
  });
  return 0;
}

}  // namespace balora::cuda
