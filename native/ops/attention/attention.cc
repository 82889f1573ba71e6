// Attention over unpadded segments: out = softmax(cap(scale * q k^T) + mask) v by head, heads of a
// group sharing a kv head. Kept for backward: q, k, v (views of a fused product stay views), out,
// each row's log-sum-exp and the sinks; never a matrix of scores. cu_seqlens and lengths are values
// on the device, so they are checked when the op runs.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

void check_bounds(const char* name, const Tensor& bounds) {
  check_ndim("attention", concat(name, " (B+1)").c_str(), bounds, 1);
  check_dtype("attention", name, bounds, DType::kI32);
  if (bounds.dim(0) < 1)
    throw ArgumentError(concat("attention: ", name, " needs at least one entry"));
}

void check_operands(const Tensor& q, const Tensor& k, const Tensor& v,
                    const AttentionSegments& segments) {
  const auto& [cu_seqlens, cu_queries, lengths] = segments;
  check_float("attention", "q", q);
  check_ndim("attention", "q (M,H,D)", q, 3);
  check_ndim("attention", "k (N,Hkv,D)", k, 3);
  check_rows_i32("attention", "q", q);
  check_rows_i32("attention", "k", k);
  const int64_t rows = cu_queries ? k.dim(0) : q.dim(0);
  check_shape("attention", "k", k, {rows, k.dim(1), q.dim(2)}, "(N,Hkv,D)");
  check_shape("attention", "v", v, k.shape(), "the shape of k");
  check_dtype("attention", "k", k, q.dtype());
  check_dtype("attention", "v", v, q.dtype());
  if (k.dim(1) < 1 || q.dim(1) % k.dim(1) != 0) {
    throw ArgumentError(concat("attention: the ", q.dim(1), " heads of q cannot share the ",
                               k.dim(1), " heads of k and v evenly"));
  }
  if (q.dim(2) < 1) throw ArgumentError("attention: heads need at least one channel");
  check_bounds("cuSeqlens", cu_seqlens);
  if (cu_queries) {
    check_bounds("cuQueries", *cu_queries);
    check_shape("attention", "cuQueries", *cu_queries, cu_seqlens.shape(), "(B+1)");
  }
  if (!lengths) return;
  check_shape("attention", "lengths", *lengths, {cu_seqlens.dim(0) - 1}, "(B)");
  check_dtype("attention", "lengths", *lengths, DType::kI32);
}

void check_options(const AttentionOptions& options) {
  if (!(options.softcap >= 0)) {
    throw ArgumentError(concat("attention: softcap must be >= 0 (0: none), got ", options.softcap));
  }
  if (options.window < 0) {
    throw ArgumentError(concat("attention: window must be >= 0 (0: none), got ", options.window));
  }
}

// Everything but out and lse that both directions read.
struct Inputs {
  Saved q, k, v, cu_seqlens, cu_queries, lengths, sinks;
};

void backward(const Inputs& in, const Tensor& out, const Tensor& lse,
              const AttentionOptions& options, const Tensor& dy, GradSink& sink) {
  const Tensor q = in.q.get(), k = in.k.get(), v = in.v.get(), sinks = in.sinks.get();
  const Tensor dq = Tensor::empty(q.engine(), q.shape(), q.dtype());
  const Tensor dk = Tensor::empty(q.engine(), k.shape(), q.dtype());
  const Tensor dv = Tensor::empty(q.engine(), v.shape(), q.dtype());
  const Tensor dsinks =
      sinks.defined() ? Tensor::empty(q.engine(), sinks.shape(), sinks.dtype()) : Tensor();
  using O = balora_attention_backward;
  launch<O>("attention_backward", &KernelTable::attention_backward,
            {{&O::dout, row_strided(dy)},
             {&O::q, q},
             {&O::k, k},
             {&O::v, v},
             {&O::cu_seqlens, in.cu_seqlens.get()},
             {&O::cu_queries, in.cu_queries.get()},
             {&O::lengths, in.lengths.get()},
             {&O::sinks, sinks},
             {&O::out, out},
             {&O::lse, lse}},
            {{&O::dq, dq}, {&O::dk, dk}, {&O::dv, dv}, {&O::dsinks, dsinks}},
            {.scale = options.scale,
             .softcap = options.softcap,
             .window = options.window,
             .causal = options.causal});
  sink.add(0, dq);
  sink.add(1, dk);
  sink.add(2, dv);
  if (dsinks.defined()) sink.add(3, dsinks);
}

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const std::optional<Tensor>& sinks, const AttentionSegments& segments,
                 const AttentionOptions& options) {
  check_operands(q, k, v, segments);
  check_options(options);
  const Tensor q3 = row_strided(q), k3 = row_strided(k), v3 = row_strided(v);
  const auto plain = [](const std::optional<Tensor>& given) {
    return given ? contiguous(given->detach()) : Tensor();
  };
  const Tensor cu = plain(segments.cu_seqlens), cu_queries = plain(segments.cu_queries);
  const Tensor valid = plain(segments.lengths), by_head = sinks_of("attention", q, sinks);
  Tensor out = Tensor::empty(q.engine(), q.shape(), q.dtype());
  const Tensor lse = Tensor::empty(q.engine(), {q.dim(0), q.dim(1)}, accumulator_dtype(q.dtype()));
  using O = balora_attention_forward;
  launch<O>("attention", &KernelTable::attention_forward,
            {{&O::q, q3},
             {&O::k, k3},
             {&O::v, v3},
             {&O::cu_seqlens, cu},
             {&O::cu_queries, cu_queries},
             {&O::lengths, valid},
             {&O::sinks, by_head}},
            {{&O::out, out}, {&O::lse, lse}},
            {.scale = options.scale,
             .softcap = options.softcap,
             .window = options.window,
             .causal = options.causal});
  const Tensor given = sinks.value_or(Tensor());
  const auto save = [recorded = grad_wanted({q, k, v, given})](const Tensor& rows) {
    return Saved::activation(rows, recorded);
  };
  record("attention", {q, k, v, given}, {out},
         [in = Inputs{.q = save(q3),
                      .k = save(k3),
                      .v = save(v3),
                      .cu_seqlens = Saved(cu),
                      .cu_queries = Saved(cu_queries),
                      .lengths = Saved(valid),
                      .sinks = Saved(by_head)},
          out = save(out), lse = Saved(lse), options](std::span<const Tensor> dy, GradSink& sink) {
           backward(in, out.get(), lse.get(), options, dy[0], sink);
         });
  return out;
}

}  // namespace balora
