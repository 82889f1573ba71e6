// Writing new keys and values into the blocks of a cache: a thread an element of k and of v. Keys
// are stored by channel, so a step of decoding writes single elements; 4 bytes of bf16 an element
// read and written, next to nothing beside a layer's weights.
#include "attention/kv_cache.cuh"

namespace balora::cuda {
namespace {

template <typename T>
struct Rows {
  const T* k;
  const T* v;
  int64_t k_stride, v_stride, count, size;
};

template <typename T>
__global__ void append_rows(const __grid_constant__ kv_cache::Cache cache, Rows<T> o) {
  const int64_t items = o.count * cache.heads * o.size;
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const int64_t d = i % o.size, h = i / o.size % cache.heads, n = i / o.size / cache.heads;
    const int32_t b = cache.sequence_of(n);
    if (!cache.check_rows(b, o.count, true)) continue;
    const auto position = static_cast<int32_t>(cache.lengths[b] - (cache.cu_rows[b + 1] - n));
    if (position / kv_cache::kBlock < cache.first_block(b)) continue;  // not kept
    T* const block = cache.block_of<T>(b, position);
    if (!block) continue;
    T* const keys = block + h * cache.head_elements();
    const int64_t at = position % kv_cache::kBlock;
    keys[d * kv_cache::kBlock + at] = o.k[n * o.k_stride + h * o.size + d];
    keys[cache.values_at() + at * cache.padded + d] = o.v[n * o.v_stride + h * o.size + d];
  }
}

}  // namespace

int32_t cache_append_kernel(Context* ctx, const balora_cache_append& o) {
  const int64_t items = view_numel(*o.k);
  if (items == 0) return 0;
  const kv_cache::Cache cache = kv_cache::cache_of(ctx, "cache_append", *o.cache, o.cu_rows);
  dispatch_float(o.k->dtype, [&]<typename T>() {
    const Rows<T> rows{.k = data_of<const T>(o.k),
                       .v = data_of<const T>(o.v),
                       .k_stride = o.k->stride[0],
                       .v_stride = o.v->stride[0],
                       .count = o.k->shape[0],
                       .size = o.k->shape[2]};
    launch(ctx, "cache_append", elements(items), append_rows<T>, cache, rows);
  });
  return 0;
}

}  // namespace balora::cuda
