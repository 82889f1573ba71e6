// Attention forward over unpadded segments (FlashAttention-2, Dao 2023): a block keeps a tile of
// queries of one head, walks the tiles of keys that they see with an online softmax in base 2, and
// leaves out and each row's log-sum-exp; no score leaves the registers.
//
// bf16, f16 (here): four warps of 32 queries (16 where D > 128), 64 keys a tile (32 where D > 64).
// Scores, softmax and sums are f32 in registers; the probabilities, rounded to T, are the A operand
// of the product with the values as they lie. The next tile of keys and values is on its way while
// one is used: one barrier a tile. Blocks that start together are heads of one tile, so a group
// reads its keys and values from L2; tiles with the most keys start first.
//
// f32, f64, D > 256: attention_plain.cu.
//
// 4 T_seen D flops a query and head. LLaMA-7B's shape (4 x 512, H = 32, D = 128, causal): 8.6 GFLOP
// and 67 MB; predicted at 60 % of mma.sync's peak: 24 us on an H100 (memory 20 us),
// 46 us on an A100.
#include "attention/attention_mma.cuh"
#include "attention/attention_plain.cuh"

namespace balora::cuda::attention {
namespace {

// ---- Arithmetic of a warp -----------------------------------------------------------------------
// The arithmetic of attention's forward on tensor cores: a warp's queries against one tile of keys,
// scores, online softmax in base 2 and sums, all in registers.

template <int kSize>
constexpr int kKeys = kSize > 64 ? 32 : 64;
template <int kSize>
constexpr int kRowTiles = kSize > 128 ? 1 : 2;  // of 16 queries, a warp
template <int kSize>
constexpr int kQueries = 16 * kMmaWarps * kRowTiles<kSize>;

// A warp's running softmax: of each of its row tiles rows g and g + 8.
template <int kSize>
struct Sums {
  float out[kRowTiles<kSize>][kSize / 8][4] = {};
  float base[kRowTiles<kSize>][2];        // what probabilities are relative to
  float total[kRowTiles<kSize>][2] = {};  // of this lane's columns
};

template <int kSize>
using Scores = float[kRowTiles<kSize>][kKeys<kSize> / 8][4];

template <int kSize, typename T>
__device__ inline void multiply_keys(Scores<kSize>& s, const T* q, const T* k) {
  BALORA_UNROLL
  for (int d = 0; d < kSize; d += 16) {
    uint32_t a[kRowTiles<kSize>][4];
    BALORA_UNROLL
    for (int r = 0; r < kRowTiles<kSize>; ++r) {
      load_a<kSize>(a[r], q + 16 * r * kPitch<kSize> + d);
    }
    BALORA_UNROLL
    for (int n = 0; n < kKeys<kSize> / 16; ++n) {
      uint32_t b[2][2];
      load_b<kSize>(b, k + 16 * n * kPitch<kSize> + d);
      BALORA_UNROLL
      for (int r = 0; r < kRowTiles<kSize>; ++r) {
        Mma<T>::multiply(s[r][2 * n], a[r], b[0]);
        Mma<T>::multiply(s[r][2 * n + 1], a[r], b[1]);
      }
    }
  }
}

// Scores of the queries from `first` on become multiples of log 2, masked; what remains to multiply
// them with is the result.
template <int kSize>
__device__ inline float finish_scores(Scores<kSize>& s, const Geometry<float>& g, int32_t first,
                                      int32_t key, int32_t rows) {
  const bool plain = g.softcap == 0 && g.scale > 0;
  const bool whole =
      g.mask.all(first, first + 16 * kRowTiles<kSize>, key, key + kKeys<kSize>, rows);
  const int lane = threadIdx.x % kWarp;
  if (plain && whole) return g.scale * kLog2e;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int e = 0; e < 4 * (kKeys<kSize> / 8); ++e) {
      float& score = s[r][e / 4][e % 4];
      if (!plain) {
        score *= g.scale;
        if (g.softcap != 0) score = g.softcap * tanh_approx(score / g.softcap);
        score *= kLog2e;
      }
      const int32_t query = first + 16 * r + lane / 4 + e % 4 / 2 * 8;
      const int32_t column = key + e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (!whole && !g.mask.sees(query, column, rows)) score = -INFINITY;
    }
  }
  return plain ? g.scale * kLog2e : 1.0f;
}

// Raises the bases of rows whose highest score left them 2^8 behind, the first one from -infinity,
// and brings their sums along: seldom, so it is worth a branch. Probabilities up to 2^8 are as
// exact as those up to 1.
template <int kSize>
__device__ inline void raise_bases(const Scores<kSize>& s, Sums<kSize>& sums, float factor) {
  float raised[kRowTiles<kSize>][2];
  bool any = false;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float highest = -INFINITY;
      BALORA_UNROLL
      for (int n = 0; n < kKeys<kSize> / 8; ++n) {
        highest = fmaxf(highest, fmaxf(s[r][n][2 * half], s[r][n][2 * half + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
      const float base = sums.base[r][half];
      const bool raise = highest * factor > base * factor + 8;
      raised[r][half] = raise ? highest : base;
      any |= raise;
    }
  }
  if (!__any_sync(kAllLanes, any)) return;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      // Where nothing was seen yet both are -infinity.
      const float now = raised[r][half], before = sums.base[r][half];
      const float rescale = now == before ? 1.0f : exp2_approx((before - now) * factor);
      sums.base[r][half] = now;
      sums.total[r][half] *= rescale;
      BALORA_UNROLL
      for (int n = 0; n < kSize / 8; ++n) {
        sums.out[r][n][2 * half] *= rescale;
        sums.out[r][n][2 * half + 1] *= rescale;
      }
    }
  }
}

// Scores become probabilities relative to the bases.
template <int kSize>
__device__ inline void soften(Scores<kSize>& s, Sums<kSize>& sums, float factor) {
  raise_bases<kSize>(s, sums, factor);
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    BALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float base = sums.base[r][half];
      const float shift = base == -INFINITY ? 0.0f : base * factor;
      BALORA_UNROLL
      for (int e = 0; e < 2 * (kKeys<kSize> / 8); ++e) {
        float& score = s[r][e / 2][2 * half + e % 2];
        score = exp2_approx(score * factor - shift);
        sums.total[r][half] += score;
      }
    }
  }
}

template <int kSize, typename T>
__device__ inline void multiply_values(Sums<kSize>& sums, const Scores<kSize>& p, const T* v) {
  BALORA_UNROLL
  for (int j = 0; j < kKeys<kSize> / 16; ++j) {
    uint32_t a[kRowTiles<kSize>][4];
    BALORA_UNROLL
    for (int r = 0; r < kRowTiles<kSize>; ++r) as_a<T>(a[r], p[r][2 * j], p[r][2 * j + 1]);
    BALORA_UNROLL
    for (int n = 0; n < kSize / 16; ++n) {
      uint32_t b[2][2];
      load_b_transposed<kSize>(b, v + 16 * j * kPitch<kSize> + 16 * n);
      BALORA_UNROLL
      for (int r = 0; r < kRowTiles<kSize>; ++r) {
        Mma<T>::multiply(sums.out[r][2 * n], a[r], b[0]);
        Mma<T>::multiply(sums.out[r][2 * n + 1], a[r], b[1]);
      }
    }
  }
}

// ---- Kernel -------------------------------------------------------------------------------------

template <typename T>
struct Operands {
  Heads<const T> q, k, v;
  Heads<T> out;
  float* lse;        // (M,H)
  Tiles tiles = {};  // set by run_mma, as is packs
  Geometry<float> g;
  bool packs = false;  // rows move in 16-byte accesses
};

// Where a block works, and a warp in it.
struct Place {
  Tile tile;
  int32_t head, kv_head;
  int32_t first_key, last_key;  // of the block, the first a multiple of kKeys<kSize>
  int32_t query, query_end;     // of the warp
};

template <int kSize, typename T>
__device__ Place place_of(const Operands<T>& o) {
  Place p;
  const int64_t tile = o.tiles.count - 1 - blockIdx.x / o.g.heads;
  p.tile = o.tiles.data[tile];
  p.head = static_cast<int32_t>(blockIdx.x % o.g.heads);
  p.kv_head = p.head / o.g.group;
  const int32_t end = min(p.tile.rows, p.tile.first + kQueries<kSize>);
  p.first_key = o.g.mask.first_key(p.tile.first) / kKeys<kSize> * kKeys<kSize>;
  p.last_key = end > p.tile.first ? o.g.mask.last_key(end - 1, p.tile.rows) : p.first_key;
  p.query = p.tile.first + static_cast<int32_t>(threadIdx.x) / kWarp * 16 * kRowTiles<kSize>;
  p.query_end = p.query + 16 * kRowTiles<kSize>;
  return p;
}

// Rows without a key, padding among them, give zeros.
template <int kSize, typename T>
__device__ inline void write_rows(const Operands<T>& o, const Place& p, Sums<kSize>& sums, T* stage,
                                  float factor) {
  const int lane = threadIdx.x % kWarp;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) {
    const int32_t query = p.query + 16 * r;
    float inverse[2];
    BALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float total = sums.total[r][half];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      inverse[half] = total == 0 ? 0.0f : 1.0f / total;
      const int32_t row = query + lane / 4 + 8 * half;
      if (lane % 4 != 0 || row >= p.tile.extent()) continue;
      const float lse = (sums.base[r][half] * factor + log2f(total)) * kLn2;
      o.lse[p.tile.query(row) * o.g.heads + p.head] = total == 0 ? 0 : lse;
    }
    store_rows<kSize, kSize, T>(stage + 16 * r * kPitch<kSize>, sums.out[r], inverse[0], inverse[1],
                                {o.out.at(p.tile.query(query), p.head), o.out.stride,
                                 p.tile.extent() - query, o.g.size, o.packs});
  }
}

// Two places for a tile of keys and its values: one is read while the other is filled.
template <typename T, int kSize>
struct Stages {
  T *k, *v;
  __device__ explicit Stages(SharedMemory& shared)
      : k(shared.array<T>(2 * kKeys<kSize> * kPitch<kSize>)),
        v(shared.array<T>(2 * kKeys<kSize> * kPitch<kSize>)) {}
  static constexpr int64_t kBytes = 2 * shared_bytes<T>(2 * kKeys<kSize> * kPitch<kSize>);
  static __device__ int at(int stage) { return stage * kKeys<kSize> * kPitch<kSize>; }
};

template <typename T, int kSize>
__global__ void __launch_bounds__(kMmaThreads) forward(Operands<T> o) {
  const Place p = place_of<kSize>(o);
  if (p.tile.first >= p.tile.extent()) return;
  SharedMemory shared;
  T* q = shared.array<T>(kQueries<kSize> * kPitch<kSize>);
  const Stages<T, kSize> stages(shared);
  const auto fetch = [&](int32_t key, int at) {
    const int64_t row = p.tile.key(key);
    fetch_tile<kSize, kKeys<kSize>>(stages.k + at, o.k.at(row, p.kv_head), o.k.stride,
                                    p.tile.rows - key, o.g.size, o.packs);
    fetch_tile<kSize, kKeys<kSize>>(stages.v + at, o.v.at(row, p.kv_head), o.v.stride,
                                    p.tile.rows - key, o.g.size, o.packs);
  };
  fetch_tile<kSize, kQueries<kSize>>(q, o.q.at(p.tile.query(p.tile.first), p.head), o.q.stride,
                                     p.tile.rows - p.tile.first, o.g.size, o.packs);
  if (p.first_key < p.last_key) fetch(p.first_key, 0);
  cp_async_commit();
  T* own = q + (p.query - p.tile.first) * kPitch<kSize>;
  Sums<kSize> sums;
  BALORA_UNROLL
  for (int r = 0; r < kRowTiles<kSize>; ++r) sums.base[r][0] = sums.base[r][1] = -INFINITY;
  float factor = 1;
  int stage = 0;
  for (int32_t key = p.first_key; key < p.last_key; key += kKeys<kSize>, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, the one before is read
    if (key + kKeys<kSize> < p.last_key) fetch(key + kKeys<kSize>, stages.at(stage ^ 1));
    cp_async_commit();
    if (!o.g.mask.any(p.query, p.query_end, key, key + kKeys<kSize>, p.tile.rows)) continue;
    Scores<kSize> s = {};
    multiply_keys<kSize>(s, own, stages.k + stages.at(stage));
    factor = finish_scores<kSize>(s, o.g, p.query, key, p.tile.rows);
    soften<kSize>(s, sums, factor);
    multiply_values<kSize>(sums, s, stages.v + stages.at(stage));
  }
  cp_async_wait<0>();
  __syncthreads();  // in a block without keys the queries are still on their way
  write_rows<kSize>(o, p, sums, own, factor);
}

template <typename T, int kSize>
void run(Context* ctx, const Operands<T>& o) {
  constexpr int64_t kShared =
      shared_bytes<T>(kQueries<kSize> * kPitch<kSize>) + Stages<T, kSize>::kBytes;
  const auto blocks = static_cast<unsigned>(o.tiles.count * o.g.heads);
  launch(ctx, "attention_forward", {dim3(blocks), dim3(kMmaThreads), kShared}, forward<T, kSize>,
         o);
}

template <typename T>
void run_mma(Context* ctx, Operands<T> o, const Segments& segments) {
  o.packs = in_packs(o.q) && in_packs(o.k) && in_packs(o.v) && in_packs(o.out);
  const int32_t side = o.g.size > 128 ? kQueries<256> : kQueries<128>;
  o.tiles = plan_tiles(ctx, "attention_forward", segments, true, side);
  if (segments.m == 0) return;
  if (o.g.size <= 64) return run<T, 64>(ctx, o);
  if (o.g.size <= 96) return run<T, 96>(ctx, o);
  if (o.g.size <= 128) return run<T, 128>(ctx, o);
  run<T, 256>(ctx, o);
}

}  // namespace
}  // namespace balora::cuda::attention

namespace balora::cuda {

int32_t attention_forward_kernel(Context* ctx, const balora_attention_forward& o) {
  if (o.sinks) throw UnsupportedError("attention: sinks are not computed on CUDA devices");
  using namespace attention;
  const Segments segments = segments_of(o);
  const auto run_with = [&]<typename T>() {
    const auto g = geometry_of<Acc<T>>(o);
    if constexpr (sizeof(T) == 2) {
      if (g.size <= 256) {
        const Operands<T> heads{.q = heads_of<const T>(o.q),
                                .k = heads_of<const T>(o.k),
                                .v = heads_of<const T>(o.v),
                                .out = heads_of<T>(o.out),
                                .lse = data_of<float>(o.lse),
                                .g = g};
        return run_mma(ctx, heads, segments);
      }
    }
    plain_forward<T>(ctx,
                     {.q = heads_of<const T>(o.q),
                      .k = heads_of<const T>(o.k),
                      .v = heads_of<const T>(o.v),
                      .out = heads_of<T>(o.out),
                      .lse = data_of<Acc<T>>(o.lse),
                      .g = g},
                     segments);
  };
  dispatch_float(o.q->dtype, run_with);
  return 0;
}

}  // namespace balora::cuda
