// Attention to a cache of keys and values, for decoding: writing into the cache, and attention of
// new rows to it. The cache is chunks of blocks (kernels/operands/attention.h), and its lists of
// blocks are values on the device, so they are checked when an op runs. Neither has a gradient.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr int64_t kBlock = BALORA_CACHE_BLOCK, kChannels = BALORA_CACHE_CHANNELS;
constexpr const char* kChunk = "a chunk (blocks,layers,2,Hkv,BLOCK,Dp)";

void check_i32(const char* op, const char* name, const Tensor& t, const Shape& shape,
               const char* symbols) {
  check_shape(op, name, t, shape, symbols);
  check_dtype(op, name, t, DType::kI32);
}

// `rows` (N,H,D): the keys and values, or the queries.
void check_cache(const char* op, const KvCache& cache, const Tensor& rows, int64_t kv_heads) {
  if (cache.chunks.empty()) throw ArgumentError(concat(op, ": the cache has no chunk"));
  const int64_t padded = (rows.dim(2) + kChannels - 1) / kChannels * kChannels;
  const Tensor& first = cache.chunks[0];
  check_ndim(op, kChunk, first, 6);
  for (const Tensor& chunk : cache.chunks) {
    check_ndim(op, kChunk, chunk, 6);
    check_shape(op, "a chunk", chunk, {chunk.dim(0), first.dim(1), 2, kv_heads, kBlock, padded},
                "(blocks,layers,2,Hkv,BLOCK,Dp)");
    check_dtype(op, "a chunk", chunk, rows.dtype());
    check_same_engine(op, rows, chunk);
    if (!chunk.is_contiguous()) throw ArgumentError(concat(op, ": a chunk must be contiguous"));
  }
  if (cache.layer < 0 || cache.layer >= first.dim(1)) {
    throw ArgumentError(
        concat(op, ": layer must be 0 to ", first.dim(1) - 1, ", got ", cache.layer));
  }
  check_ndim(op, "lengths (B)", cache.lengths, 1);
  const int64_t sequences = cache.lengths.dim(0);
  check_dtype(op, "lengths", cache.lengths, DType::kI32);
  check_i32(op, "cuRows", cache.cu_rows, {sequences + 1}, "(B+1)");
  check_ndim(op, "tables (B,W)", cache.tables, 2);
  check_i32(op, "tables", cache.tables, {sequences, cache.tables.dim(1)}, "(B,W)");
  if (cache.first_blocks) {
    check_i32(op, "firstBlocks", *cache.first_blocks, {sequences}, "(B)");
  }
}

// The places of everything of the cache but the chunks in a launch.
struct CacheSlots {
  Slot cu_rows, lengths, tables, first_blocks;
  int64_t layer;

  CacheSlots(LaunchOperands& all, const KvCache& cache) : layer(cache.layer) {
    const auto plain = [&](const Tensor& t) { return all.read(contiguous(t.detach())); };
    cu_rows = plain(cache.cu_rows);
    lengths = plain(cache.lengths);
    tables = plain(cache.tables);
    if (cache.first_blocks) first_blocks = plain(*cache.first_blocks);
  }

  balora_kv_cache view(const Launch& l, std::span<const View* const> chunks) const {
    return {.chunks = chunks.data(),
            .chunk_count = static_cast<int32_t>(chunks.size()),
            .layer = static_cast<int32_t>(layer),
            .lengths = l[lengths],
            .tables = l[tables],
            .first_blocks = l[first_blocks]};
  }
};

std::vector<const View*> views_of(const Launch& l, const std::vector<Slot>& slots) {
  std::vector<const View*> views;
  for (const Slot slot : slots) views.push_back(l[slot]);
  return views;
}

}  // namespace

void cache_append(const Tensor& k, const Tensor& v, const KvCache& cache) {
  constexpr const char* kOp = "cache_append";
  check_float(kOp, "k", k);
  check_ndim(kOp, "k (N,Hkv,D)", k, 3);
  check_rows_i32(kOp, "k", k);
  check_shape(kOp, "v", v, k.shape(), "the shape of k");
  check_dtype(kOp, "v", v, k.dtype());
  check_same_engine(kOp, k, v);
  check_cache(kOp, cache, k, k.dim(1));
  if (grad_wanted({k, v})) {
    throw ArgumentError("cache_append: has no gradient; run the forward with noGrad()");
  }
  LaunchOperands all;
  const Slot keys = all.read(row_strided(k)), values = all.read(row_strided(v));
  const CacheSlots slots(all, cache);
  std::vector<Slot> chunks;
  for (Tensor chunk : cache.chunks) {
    prepare_in_place(kOp, chunk);
    chunks.push_back(all.write(chunk.detach()));
  }
  launch(kOp, all, [=](Launch& l) {
    const std::vector<const View*> views = views_of(l, chunks);
    const balora_kv_cache seen = slots.view(l, views);
    return call(l.kernels->cache_append, l.ctx,
                {.k = l[keys], .v = l[values], .cu_rows = l[slots.cu_rows], .cache = &seen});
  });
}

Tensor cached_attention(const Tensor& q, const KvCache& cache, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& sinks, const AttentionOptions& options) {
  constexpr const char* kOp = "cached_attention";
  check_float(kOp, "q", q);
  check_ndim(kOp, "q (N,H,D)", q, 3);
  check_rows_i32(kOp, "q", q);
  if (cache.chunks.empty()) throw ArgumentError("cached_attention: the cache has no chunk");
  check_ndim(kOp, kChunk, cache.chunks[0], 6);
  const int64_t kv_heads = cache.chunks[0].dim(3);
  check_cache(kOp, cache, q, kv_heads);
  if (kv_heads < 1 || q.dim(1) % kv_heads != 0) {
    throw ArgumentError(concat("cached_attention: the ", q.dim(1), " heads of q cannot share the ",
                               kv_heads, " heads of the cache"));
  }
  if (!(options.softcap >= 0) || options.window < 0) {
    throw ArgumentError("cached_attention: softcap and window must be >= 0 (0: none)");
  }
  if (bias) {
    check_ndim(kOp, "bias (R,H)", *bias, 2);
    check_shape(kOp, "bias", *bias, {bias->dim(0), q.dim(1)}, "(R,H)");
    check_dtype(kOp, "bias", *bias, q.dtype());
    check_same_engine(kOp, q, *bias);
    if (!options.causal) throw ArgumentError("cached_attention: a bias needs causal rows");
  }
  const Tensor by_head = sinks_of(kOp, q, sinks);
  if (grad_wanted({q, bias.value_or(Tensor()), sinks.value_or(Tensor())})) {
    throw ArgumentError("cached_attention: has no gradient; run the forward with noGrad()");
  }
  Tensor out = Tensor::empty(q.engine(), q.shape(), q.dtype());
  LaunchOperands all;
  const Slot queries = all.read(row_strided(q));
  const Slot distances = bias ? all.read(contiguous(bias->detach())) : Slot();
  const Slot of_heads = all.read(by_head);
  const CacheSlots slots(all, cache);
  std::vector<Slot> chunks;
  for (const Tensor& chunk : cache.chunks) chunks.push_back(all.read(chunk.detach()));
  const Slot to = all.write(out);
  launch(kOp, all, [=](Launch& l) {
    const std::vector<const View*> views = views_of(l, chunks);
    const balora_kv_cache seen = slots.view(l, views);
    return call(l.kernels->cached_attention, l.ctx,
                {.q = l[queries],
                 .cu_rows = l[slots.cu_rows],
                 .cache = &seen,
                 .bias = l[distances],
                 .sinks = l[of_heads],
                 .out = l[to],
                 .scale = options.scale,
                 .softcap = options.softcap,
                 .window = options.window,
                 .causal = options.causal});
  });
  return out;
}

}  // namespace balora
