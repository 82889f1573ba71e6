// Attention with relative positions, within one sequence or from one to another:
//   score(t,j) = scale * (q_t k_j + q_t position_k[p] + k_j position_q[p]) + bias[r]
// by head, r = j - t + (R-1)/2, p = index[r]: the bias is T5's (Raffel et al. 2020), the position
// terms are DeBERTa's disentangled attention (He et al. 2021). Kept for backward: the operands,
// out, and each row's log-sum-exp; never a matrix of scores.
#include <array>

#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr const char* kOp = "relative_attention";

// The operands by name, in one of the forms that the op needs them in: tensors, what backward keeps
// of them, slots of a launch.
template <typename T>
struct OperandsOf {
  T q, k, v, bias, position_k, position_q;
  T cu_queries, cu_keys, query_lengths, key_lengths, index;
};
template <typename To, typename From, typename F>
OperandsOf<To> map_operands(const OperandsOf<From>& o, const F& f) {
  return {.q = f(o.q),
          .k = f(o.k),
          .v = f(o.v),
          .bias = f(o.bias),
          .position_k = f(o.position_k),
          .position_q = f(o.position_q),
          .cu_queries = f(o.cu_queries),
          .cu_keys = f(o.cu_keys),
          .query_lengths = f(o.query_lengths),
          .key_lengths = f(o.key_lengths),
          .index = f(o.index)};
}

// The operands that have gradients, in the order in which the tape has them.
template <typename T>
struct DifferentiableOf {
  T q, k, v, bias, position_k, position_q;

  std::array<T, 6> list() const { return {q, k, v, bias, position_k, position_q}; }
};
template <typename To, typename From, typename F>
DifferentiableOf<To> map_differentiable(const From& o, const F& f) {
  return {.q = f(o.q),
          .k = f(o.k),
          .v = f(o.v),
          .bias = f(o.bias),
          .position_k = f(o.position_k),
          .position_q = f(o.position_q)};
}

struct Scores {
  double scale;
  bool causal;
};

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

OperandsOf<Slot> read_all(LaunchOperands& all, const OperandsOf<Tensor>& operands) {
  return map_operands<Slot>(operands, [&](const Tensor& t) { return all.read(t); });
}

Relative relative_of(const Launch& l, const OperandsOf<Slot>& slots, const Scores& scores) {
  return {.q = l[slots.q],
          .k = l[slots.k],
          .v = l[slots.v],
          .cu_queries = l[slots.cu_queries],
          .cu_keys = l[slots.cu_keys],
          .query_lengths = l[slots.query_lengths],
          .key_lengths = l[slots.key_lengths],
          .bias = l[slots.bias],
          .position_k = l[slots.position_k],
          .position_q = l[slots.position_q],
          .index = l[slots.index],
          .scale = scores.scale,
          .causal = scores.causal};
}

// The values that backward reads.
struct Kept {
  OperandsOf<Saved> operands;
  Saved out, lse;
};

void backward(const Kept& kept, const Scores& scores, const Tensor& dy, GradSink& sink) {
  const auto operands =
      map_operands<Tensor>(kept.operands, [](const Saved& saved) { return saved.get(); });
  // q, k and v always get theirs: they come from one pass.
  const auto gradients = map_differentiable<Tensor>(operands, [](const Tensor& t) {
    return t.defined() ? Tensor::empty(t.engine(), t.shape(), t.dtype()) : Tensor();
  });
  LaunchOperands all;
  const Slot dout = all.read(row_strided(dy)), out = all.read(kept.out.get());
  const Slot lse = all.read(kept.lse.get());
  const OperandsOf<Slot> slots = read_all(all, operands);
  const auto written =
      map_differentiable<Slot>(gradients, [&](const Tensor& t) { return all.write(t); });
  launch("relative_attention_backward", all, [=](Launch& l) {
    const Relative r = relative_of(l, slots, scores);
    const RelativeGradients g{.q = l[written.q],
                              .k = l[written.k],
                              .v = l[written.v],
                              .bias = l[written.bias],
                              .position_k = l[written.position_k],
                              .position_q = l[written.position_q]};
    return call(l.kernels->relative_attention_backward, l.ctx,
                {.dout = l[dout], .r = &r, .out = l[out], .lse = l[lse], .gradients = &g});
  });
  const auto list = gradients.list();
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].defined()) sink.add(i, list[i]);
  }
}

}  // namespace

Tensor relative_attention(const RelativeOperands& o, double scale, bool causal) {
  check_rows(o);
  check_terms(o);
  const OperandsOf<Tensor> in = {.q = rows_of(o.q),
                                 .k = rows_of(o.k),
                                 .v = rows_of(o.v),
                                 .bias = plain(o.bias),
                                 .position_k = rows_of(o.position_k),
                                 .position_q = rows_of(o.position_q),
                                 .cu_queries = plain(o.cu_queries),
                                 .cu_keys = plain(o.cu_keys),
                                 .query_lengths = plain(o.query_lengths),
                                 .key_lengths = plain(o.key_lengths),
                                 .index = plain(o.index)};
  Tensor out = Tensor::empty(o.q.engine(), o.q.shape(), o.q.dtype());
  const Tensor lse =
      Tensor::empty(o.q.engine(), {o.q.dim(0), o.q.dim(1)}, accumulator_dtype(o.q.dtype()));
  const Scores scores{scale, causal};
  LaunchOperands all;
  const OperandsOf<Slot> slots = read_all(all, in);
  const Slot to = all.write(out), to_lse = all.write(lse);
  launch(kOp, all, [=](Launch& l) {
    const Relative r = relative_of(l, slots, scores);
    return call(l.kernels->relative_attention_forward, l.ctx,
                {.r = &r, .out = l[to], .lse = l[to_lse]});
  });

  const auto given = map_differentiable<Tensor>(
      o, [](const std::optional<Tensor>& t) { return t.value_or(Tensor()); });
  const bool recorded = grad_wanted(given.list());
  const auto save = [](const Tensor& t) { return Saved(t); };
  Kept keep{map_operands<Saved>(in, save), Saved::activation(out, recorded), Saved(lse)};
  keep.operands.q = Saved::activation(in.q, recorded);
  keep.operands.k = Saved::activation(in.k, recorded);
  keep.operands.v = Saved::activation(in.v, recorded);
  record(kOp, given.list(), std::vector<Tensor>{out},
         [kept = std::move(keep), scores](std::span<const Tensor> dy, GradSink& sink) {
           backward(kept, scores, dy[0], sink);
         });
  return out;
}

}  // namespace balora
