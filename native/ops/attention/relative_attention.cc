// Attention with relative positions, within one sequence or from one to another:
//   score(t,j) = scale * (q_t k_j + q_t position_k[p] + k_j position_q[p]) + bias[r]
// by head, r = j - t + (R-1)/2, p = index[r]: the bias is T5's (Raffel et al. 2020), the position
// terms are DeBERTa's disentangled attention (He et al. 2021). Kept for backward: the operands,
// out, and each row's log-sum-exp; never a matrix of scores.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr const char* kOp = "relative_attention";

// Where the operands stand in the list that the kernel reads.
enum : size_t { kQ, kK, kV, kBias, kPositionK, kPositionQ, kCuQ, kCuK, kLenQ, kLenK, kIndex };
constexpr size_t kDifferentiable = 6;  // the first of them

void check_segments(const char* name, const Tensor& cu, const char* lengths_name,
                    const std::optional<Tensor>& lengths) {
  check_ndim(kOp, name, cu, 1);
  check_dtype(kOp, name, cu, DType::kI32);
  if (cu.dim(0) < 1) throw ArgumentError(concat(kOp, ": ", name, " needs at least one entry"));
  if (!lengths) return;
  check_shape(kOp, lengths_name, *lengths, {cu.dim(0) - 1}, "(B)");
  check_dtype(kOp, lengths_name, *lengths, DType::kI32);
}

void check_rows(const RelativeOperands& o) {
  check_float(kOp, "q", o.q);
  check_ndim(kOp, "q (N,H,D)", o.q, 3);
  check_ndim(kOp, "k (M,H,D)", o.k, 3);
  check_rows_i32(kOp, "q", o.q);
  check_rows_i32(kOp, "k", o.k);
  check_shape(kOp, "k", o.k, {o.k.dim(0), o.q.dim(1), o.q.dim(2)}, "(M,H,D)");
  check_shape(kOp, "v", o.v, o.k.shape(), "the shape of k");
  if (o.q.dim(1) < 1 || o.q.dim(2) < 1) {
    throw ArgumentError(concat(kOp, ": needs a head with at least one channel"));
  }
  for (const auto& [name, t] : {std::pair{"k", o.k}, {"v", o.v}}) {
    check_dtype(kOp, name, t, o.q.dtype());
  }
  check_segments("cuQueries", o.cu_queries, "queryLengths", o.query_lengths);
  check_segments("cuKeys", o.cu_keys, "keyLengths", o.key_lengths);
  check_shape(kOp, "cuKeys", o.cu_keys, o.cu_queries.shape(), "the shape of cuQueries");
}

void check_odd(const char* name, int64_t extent) {
  if (extent % 2 == 1) return;
  throw ArgumentError(concat(kOp, ": ", name, " must cover an odd number of relative positions",
                             " (the middle one is 0), got ", extent));
}

void check_terms(const RelativeOperands& o) {
  const int64_t heads = o.q.dim(1), size = o.q.dim(2);
  if (o.bias) {
    check_ndim(kOp, "bias (R,H)", *o.bias, 2);
    check_shape(kOp, "bias", *o.bias, {o.bias->dim(0), heads}, "(R,H)");
    check_dtype(kOp, "bias", *o.bias, o.q.dtype());
    check_odd("bias", o.bias->dim(0));
  }
  const bool placed = o.position_k || o.position_q;
  if (placed != o.index.has_value()) {
    throw ArgumentError(concat(kOp, ": index goes together with positionK or positionQ"));
  }
  if (!placed) return;
  check_ndim(kOp, "index (R)", *o.index, 1);
  check_dtype(kOp, "index", *o.index, DType::kI32);
  check_odd("index", o.index->dim(0));
  if (o.bias) check_shape(kOp, "index", *o.index, {o.bias->dim(0)}, "(R)");
  const int64_t positions = (o.position_k ? *o.position_k : *o.position_q).dim(0);
  for (const auto& [name, t] :
       {std::pair{"positionK", o.position_k}, {"positionQ", o.position_q}}) {
    if (!t) continue;
    check_shape(kOp, name, *t, {positions, heads, size}, "(P,H,D)");
    check_dtype(kOp, name, *t, o.q.dtype());
  }
}

Tensor rows_of(const std::optional<Tensor>& t) {
  return t ? row_strided(*t) : Tensor();
}
Tensor plain(const std::optional<Tensor>& t) {
  return t ? contiguous(t->detach()) : Tensor();
}

Relative relative_of(const Launch& l, size_t at, double scale, bool causal) {
  const auto in = [&](size_t i) { return l.in(at + i); };
  return {in(kQ),    in(kK),         in(kV),         in(kCuQ),   in(kCuK), in(kLenQ), in(kLenK),
          in(kBias), in(kPositionK), in(kPositionQ), in(kIndex), scale,    causal};
}

}  // namespace

Tensor relative_attention(const RelativeOperands& o, double scale, bool causal) {
  check_rows(o);
  check_terms(o);
  const std::vector<Tensor> in = {
      rows_of(o.q),           rows_of(o.k),          rows_of(o.v),        plain(o.bias),
      rows_of(o.position_k),  rows_of(o.position_q), plain(o.cu_queries), plain(o.cu_keys),
      plain(o.query_lengths), plain(o.key_lengths),  plain(o.index)};
  const Tensor out = Tensor::empty(o.q.engine(), o.q.shape(), o.q.dtype());
  const Tensor lse =
      Tensor::empty(o.q.engine(), {o.q.dim(0), o.q.dim(1)}, accumulator_dtype(o.q.dtype()));
  const std::vector<Tensor> results = {out, lse};
  launch(kOp, in, results, [scale, causal](Launch& l) {
    const Relative r = relative_of(l, 0, scale, causal);
    return call(l.kernels->relative_attention_forward, l.ctx,
                {.r = &r, .out = l.out(0), .lse = l.out(1)});
  });

  std::vector<Saved> kept;
  for (const Tensor& t : in) kept.emplace_back(t);
  record(kOp,
         {o.q, o.k, o.v, o.bias.value_or(Tensor()), o.position_k.value_or(Tensor()),
          o.position_q.value_or(Tensor())},
         {out},
         [kept = std::move(kept), out = Saved(out), lse = Saved(lse), scale, causal](
             std::span<const Tensor> dy, GradSink& sink) {
           std::vector<Tensor> inputs = {row_strided(dy[0]), out.get(), lse.get()};
           for (const Saved& saved : kept) inputs.push_back(saved.get());
           std::vector<Tensor> gradients;
           for (size_t i = 0; i < kDifferentiable; ++i) {
             const Tensor& t = inputs[3 + i];
             // q, k and v always get theirs: they come from one pass.
             gradients.push_back(t.defined() ? Tensor::empty(t.engine(), t.shape(), t.dtype())
                                             : Tensor());
           }
           launch("relative_attention_backward", inputs, gradients, [scale, causal](Launch& l) {
             const Relative r = relative_of(l, 3, scale, causal);
             const RelativeGradients g{l.out(0), l.out(1), l.out(2), l.out(3), l.out(4), l.out(5)};
             return call(
                 l.kernels->relative_attention_backward, l.ctx,
                 {.dout = l.in(0), .r = &r, .out = l.in(1), .lse = l.in(2), .gradients = &g});
           });
           for (size_t i = 0; i < kDifferentiable; ++i) {
             if (gradients[i].defined()) sink.add(i, gradients[i]);
           }
         });
  return out;
}

}  // namespace balora
