// Attention: its options come as single arguments.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {
namespace {

Tensor attention_row(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                     const std::optional<Tensor>& cu_queries, const std::optional<Tensor>& lengths,
                     double scale, double softcap, int64_t window, bool causal) {
  return attention(q, k, v, {cu_seqlens, cu_queries, lengths}, {scale, softcap, window, causal});
}

Tensor relative_attention_row(const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& cu_queries, const Tensor& cu_keys,
                              const std::vector<std::optional<Tensor>>& optional, double scale,
                              bool causal) {
  if (optional.size() != 6) throw ArgumentError("relative_attention: expected 6 optional operands");
  return relative_attention({q, k, v, cu_queries, cu_keys, optional[0], optional[1], optional[2],
                             optional[3], optional[4], optional[5]},
                            scale, causal);
}

}  // namespace

void bind_attention(Module& m) {
  op(m, "attention", &attention_row,
     {"q", "k", "v", "cuSeqlens", "cuQueries", "lengths", "scale", "softcap", "window", "causal"},
     Grad::kYes);
  op(m, "relativeAttention", &relative_attention_row,
     {"q", "k", "v", "cuQueries", "cuKeys", "optional", "scale", "causal"}, Grad::kYes);
}

}  // namespace balora::binding
