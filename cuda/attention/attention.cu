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
// and 67 MB; predicted at 60 % of mma.sync's peak: 24 us on an H100 (memory 20 us), 46 us on an
// A100.
#include "attention/attention_plain.cuh"
#include "attention/attention_softmax.cuh"

namespace balora::cuda::attention {
namespace {

template <typename T>
struct Operands {
  Heads<const T> q, k, v;
  Heads<T> out;
  float* lse;  // (M,H)
  Tiles tiles;
  Geometry<float> g;
  bool packs;  // rows move in 16-byte accesses
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
    store_rows<kSize, kSize>(stage + 16 * r * kPitch<kSize>, sums.out[r], inverse[0], inverse[1],
                             o.out.at(p.tile.query(query), p.head), o.out.stride,
                             p.tile.extent() - query, o.g.size, o.packs);
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
  using namespace attention;
  const Segments segments{o.cu_seqlens, o.cu_queries, o.lengths, o.k->shape[0], o.q->shape[0]};
  const auto run_with = [&]<typename T>() {
    const auto g = geometry_of<Acc<T>>(o.q, o.k, o.scale, o.softcap, o.window, o.causal);
    if constexpr (sizeof(T) == 2) {
      if (g.size <= 256) {
        const Operands<T> heads{heads_of<const T>(o.q),
                                heads_of<const T>(o.k),
                                heads_of<const T>(o.v),
                                heads_of<T>(o.out),
                                data_of<float>(o.lse),
                                {},
                                g,
                                false};
        return run_mma(ctx, heads, segments);
      }
    }
    plain_forward<T>(ctx,
                     {heads_of<const T>(o.q),
                      heads_of<const T>(o.k),
                      heads_of<const T>(o.v),
                      heads_of<T>(o.out),
                      data_of<Acc<T>>(o.lse),
                      {},
                      g},
                     segments);
  };
  dispatch_float(o.q->dtype, run_with);
  return 0;
}

}  // namespace balora::cuda
