// Attention: its operands and options come as structures.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

template <>
struct Named<AttentionSegments> {
  static auto fields() {
    using S = AttentionSegments;
    return std::tuple{field("cuSeqlens", &S::cu_seqlens), field("cuQueries", &S::cu_queries),
                      field("lengths", &S::lengths)};
  }
};
template <>
struct Named<AttentionOptions> {
  static auto fields() {
    using S = AttentionOptions;
    return std::tuple{field("scale", &S::scale), field("softcap", &S::softcap),
                      field("window", &S::window), field("causal", &S::causal)};
  }
};
template <>
struct Named<RelativeOperands> {
  static auto fields() {
    using S = RelativeOperands;
    return std::tuple{field("q", &S::q),
                      field("k", &S::k),
                      field("v", &S::v),
                      field("cuQueries", &S::cu_queries),
                      field("cuKeys", &S::cu_keys),
                      field("queryLengths", &S::query_lengths),
                      field("keyLengths", &S::key_lengths),
                      field("bias", &S::bias),
                      field("positionKeys", &S::position_k),
                      field("positionQueries", &S::position_q),
                      field("index", &S::index)};
  }
};
template <>
struct Named<KvCache> {
  static auto fields() {
    using S = KvCache;
    return std::tuple{field("chunks", &S::chunks),  field("layer", &S::layer),
                      field("cuRows", &S::cu_rows), field("lengths", &S::lengths),
                      field("tables", &S::tables),  field("firstBlocks", &S::first_blocks)};
  }
};

void bind_attention(Module& m) {
  op(m, "attention", &attention, {"q", "k", "v", "sinks", "segments", "options"}, Grad::kYes);
  op(m, "relativeAttention", &relative_attention, {"operands", "scale", "causal"}, Grad::kYes);
  op(m, "cacheAppend", &cache_append, {"k", "v", "cache"}, Grad::kNone);
  op(m, "cachedAttention", &cached_attention, {"q", "cache", "bias", "sinks", "options"},
     Grad::kNone);
}

}  // namespace balora::binding
