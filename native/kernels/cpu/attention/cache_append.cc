// Writing new keys and values into the blocks of a cache. Keys are stored by channel, so that
// attention has the scores of a block's keys side by side. Rows go by blocks of the cache, and all
// channels of one meet the same cache lines.
#include "kernels/cpu/attention/kv_cache.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora::kv_cache {
namespace {

// Positions [first, last) of a sequence, all in one block.
struct Span {
  const Sequence* sequence;
  int64_t first, last;
};

std::vector<Span> spans_of(const Layer& layer) {
  std::vector<Span> spans;
  for (const Sequence& sequence : layer.sequences()) {
    int64_t at = std::max(sequence.length - sequence.rows(), sequence.first * kBlock);
    while (at < sequence.length) {
      const int64_t last = std::min(sequence.length, (at / kBlock + 1) * kBlock);
      spans.push_back({&sequence, at, last});
      at = last;
    }
  }
  return spans;
}

template <typename T>
void write_span(const Layer& layer, const Span& span, const View& k, const View& v) {
  const Sequence& sequence = *span.sequence;
  auto* const block = reinterpret_cast<T*>(sequence.blocks[span.first / kBlock - sequence.first]);
  const int64_t size = k.shape[2];
  for (int64_t h = 0; h < layer.heads(); ++h) {
    T* const keys = block + h * layer.head_elements();
    T* const values = keys + layer.values_at();
    for (int64_t position = span.first; position < span.last; ++position) {
      const int64_t row = sequence.end - (sequence.length - position);
      const T* from = data_of<T>(&k) + row * k.stride[0] + h * size;
      T* to = keys + position % kBlock;
      for (int64_t d = 0; d < size; ++d) to[d * kBlock] = from[d];
      std::copy_n(data_of<T>(&v) + row * v.stride[0] + h * size, size,
                  values + position % kBlock * layer.padded());
    }
  }
}

}  // namespace
}  // namespace balora::kv_cache

namespace balora {

int32_t cache_append_kernel(Context* ctx, const balora_cache_append& o) {
  using namespace kv_cache;
  const Layer layer(*o.cache, o.cu_rows, o.k->shape[0], true);
  const std::vector<Span> spans = spans_of(layer);
  constexpr int64_t kGrainElements = 1 << 13;
  const int64_t elements = kBlock * layer.heads() * o.k->shape[2];
  const int64_t grain = std::max<int64_t>(grain_of(kGrainElements, elements), 1);
  // A step of decoding has one position of each span.
  const int64_t least =
      o.k->shape[0] <= 2 * static_cast<int64_t>(spans.size()) ? 16 * grain : grain;
  dispatch_float(o.k->dtype, [&]<typename T>() {
    parallel_for(ctx, static_cast<int64_t>(spans.size()), least, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        write_span<T>(layer, spans[static_cast<size_t>(i)], *o.k, *o.v);
      }
    });
  });
  return 0;
}

}  // namespace balora
