// Attention forward by fused multiply-add: f32, f64, and heads that the tensor cores' tiles do not
// hold. A block of 256 threads has 64 queries and up to 128 columns of the values (64 in f64), and
// walks tiles of 64 keys with an online softmax; heads with more columns are cut into slices, each
// of which computes the scores again, so any head size has a place. No more than a tile of
// probabilities is in shared memory (34 KiB, f64 61 KiB).
//
// 4 T_seen D flops a query and head, half the rate of FMA in f32 at best: two shared accesses
// feed 16 products a thread.
#include "attention/attention_plain.cuh"

#include "attention/attention_blocks.cuh"
#include "elementwise/device_math.cuh"
#include "kernels/shared/activations.h"

namespace balora::cuda::attention {
namespace {

template <typename T>
constexpr int kParts = sizeof(T) == 8 ? 1 : 2;  // of kSide columns, a block

template <typename T>
__device__ void mask_scores(Corner<Acc<T>>& s, const PlainForward<T>& o, const Tile& tile,
                            int32_t key) {
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    BALORA_UNROLL
    for (int j = 0; j < kEdge; ++j) {
      Acc<T> score = s[i][j] * o.g.scale;
      if (o.g.softcap != 0) score = soft_capped<DeviceMath>(score, o.g.softcap);
      const bool seen =
          o.g.mask.sees(tile.first + row_of_thread() + i, key + column_of_thread() + j, tile.rows);
      s[i][j] = seen ? score : static_cast<Acc<T>>(-INFINITY);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    forward_plain(PlainForward<T> o, int32_t slices) {
  using A = Acc<T>;
  const Tile tile = o.tiles.data[o.tiles.count - 1 - blockIdx.x / slices / o.g.heads];
  const int32_t head = static_cast<int32_t>(blockIdx.x / slices % o.g.heads);
  const int32_t column = static_cast<int32_t>(blockIdx.x % slices) * kSide * kParts<T>;
  if (tile.first >= tile.extent()) return;
  SharedMemory shared;
  const Slices<A> pass(shared);
  A* weights = shared.array<A>(kSide * kTransposedPitch);
  const int32_t end = min(tile.rows, tile.first + kSide), kv_head = head / o.g.group;
  const int32_t first_key = o.g.mask.first_key(tile.first) / kSide * kSide;
  const int32_t last_key = end > tile.first ? o.g.mask.last_key(end - 1, tile.rows) : first_key;
  const Source<T> q = rows_of(o.q, tile.query(tile.first), head, tile.rows - tile.first);
  RunningSoftmax<A> softmax;
  Corner<A> out[kParts<T>] = {};
  for (int32_t key = first_key; key < last_key; key += kSide) {
    Corner<A> s = {};
    multiply_rows(s, q, rows_of(o.k, tile.key(key), kv_head, tile.rows - key), pass);
    mask_scores(s, o, tile, key);
    A rescale[kEdge];
    softmax.take(s, rescale);
    store_transposed(weights, s);
    const Source<T> v = rows_of(o.v, tile.key(key), kv_head, tile.rows - key);
    BALORA_UNROLL
    for (int part = 0; part < kParts<T>; ++part) {
      BALORA_UNROLL
      for (int e = 0; e < kEdge * kEdge; ++e) out[part][e / kEdge][e % kEdge] *= rescale[e / kEdge];
      if (column + part * kSide >= o.g.size) continue;
      multiply_columns(out[part], weights, v, column + part * kSide, pass);
    }
  }
  A inverse[kEdge];
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    inverse[i] = softmax.inverse(i);
    const int32_t row = tile.first + row_of_thread() + i;
    if (column == 0 && column_of_thread() == 0 && row < tile.extent()) {
      o.lse[tile.query(row) * o.g.heads + head] = softmax.lse(i);
    }
  }
  BALORA_UNROLL
  for (int part = 0; part < kParts<T>; ++part) {
    write_corner(out[part], inverse, o.out.at(tile.query(tile.first), head), o.out.stride,
                 tile.extent() - tile.first, column + part * kSide, o.g.size);
  }
}

}  // namespace

template <typename T>
void plain_forward(Context* ctx, PlainForward<T> o, const Segments& segments) {
  using A = Acc<T>;
  o.tiles = plan_tiles(ctx, "attention_forward", segments, true, kSide);
  if (segments.m == 0) return;
  const int64_t slices = ceil_div(o.g.size, kSide * kParts<T>);
  const auto blocks = static_cast<unsigned>(o.tiles.count * o.g.heads * slices);
  launch(ctx, "attention_forward",
         {dim3(blocks), dim3(kBlockThreads), Slices<A>::kBytes + kSquareBytes<A>}, forward_plain<T>,
         o, slices);
}

template void plain_forward<float>(Context*, PlainForward<float>, const Segments&);
template void plain_forward<double>(Context*, PlainForward<double>, const Segments&);
template void plain_forward<bf16>(Context*, PlainForward<bf16>, const Segments&);
template void plain_forward<f16>(Context*, PlainForward<f16>, const Segments&);

}  // namespace balora::cuda::attention
