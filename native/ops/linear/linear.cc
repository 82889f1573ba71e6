// Linears that share their input, each with any number of low-rank parts:
//   y_i = x W_i^T + bias_i + sum over parts p of i: scale_p (x_adapter A_p^T) B_p^T,  x_adapter = x
//   unless given.
// x (...,I), W (O,I), A (R,I), B (O,R). Base and low-rank parts are summed in f32 and rounded once;
// A and B are f32 (f64 beside f64), or of x's type and then widened. A frozen W never gets a
// gradient. Kept for backward: x (or how to make it again) and U = x A^T (N,R), each only where a
// gradient needs it.
#include <algorithm>

#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr const char* kOp = "linear";

// Where things stand in the lists of operands: x, x_adapter, weights, biases, a, b.
struct Layout {
  size_t linears = 0, parts = 0;
  std::vector<double> scales;
  std::vector<int32_t> targets, is_change;

  size_t weight(size_t i) const { return 2 + i; }
  size_t bias(size_t i) const { return 2 + linears + i; }
  size_t a(size_t p) const { return 2 + 2 * linears + p; }
  size_t b(size_t p) const { return 2 + 2 * linears + parts + p; }
  size_t operands() const { return 2 + 2 * linears + 2 * parts; }
};

std::string indexed(const char* name, size_t i) {
  return concat(name, "[", i, "]");
}

void check_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  size_t i) {
  const std::string name = indexed("weight", i), bias_name = indexed("bias", i);
  check_ndim(kOp, name.c_str(), weight, 2);
  check_shape(kOp, name.c_str(), weight, {weight.dim(0), x.dim(-1)}, "(O,I)");
  check_dtype(kOp, name.c_str(), weight, x.dtype());
  check_same_engine(kOp, x, weight);
  if (!bias) return;
  check_shape(kOp, bias_name.c_str(), *bias, {weight.dim(0)}, "(O)");
  check_dtype(kOp, bias_name.c_str(), *bias, x.dtype());
}

void check_part(const Tensor& x, const Tensor& weight, const Tensor& a, const Tensor& b, size_t p) {
  const std::string name_a = indexed("a", p), name_b = indexed("b", p);
  check_float(kOp, name_a.c_str(), a);
  check_ndim(kOp, name_a.c_str(), a, 2);
  check_shape(kOp, name_a.c_str(), a, {a.dim(0), x.dim(-1)}, "(R,I)");
  check_shape(kOp, name_b.c_str(), b, {weight.dim(0), a.dim(0)}, "(O,R)");
  const DType master = accumulator_dtype(x.dtype());
  for (const auto& [name, factor] : {std::pair{name_a, a}, {name_b, b}}) {
    if (factor.dtype() == master || factor.dtype() == x.dtype()) continue;
    const std::string other = master == x.dtype() ? "" : concat(" or ", dtype_name(x.dtype()));
    throw ArgumentError(concat("linear: ", name, " must be ", dtype_name(master), other, ", got ",
                               dtype_name(factor.dtype())));
  }
}

// The kernels' operands, from views in Layout's order; y (or dy) and u follow as given.
struct Operands {
  std::vector<LinearOperands> linears;
  std::vector<LowRankOperands> parts;
};

Operands operands_of(const Launch& l, const Layout& at) {
  Operands o;
  for (size_t i = 0; i < at.linears; ++i) {
    o.linears.push_back({l.in(at.weight(i)), l.in(at.bias(i)), nullptr});
  }
  for (size_t p = 0; p < at.parts; ++p) {
    o.parts.push_back({l.in(at.a(p)), l.in(at.b(p)), nullptr, nullptr, nullptr, at.scales[p],
                       at.targets[p], at.is_change[p]});
  }
  return o;
}

// Everything the backward pass keeps.
struct Kept {
  Layout at;
  Shape x_shape;
  std::vector<Saved> operands;  // Layout's order; x only if a gradient needs it
  std::vector<Saved> u;         // per part, likewise
};

// da and db of the adapters and the gradient of the input, in one launch.
void backward_low_rank(const Kept& kept, const std::vector<Tensor>& dy, GradSink& sink) {
  const Layout& at = kept.at;
  const Tensor weight = kept.operands[at.weight(0)].get();
  std::vector<Tensor> in, out(2 + 2 * at.parts);
  for (const Saved& saved : kept.operands) in.push_back(saved.defined() ? saved.get() : Tensor());
  for (const Saved& u : kept.u) in.push_back(u.defined() ? u.get() : Tensor());
  in.insert(in.end(), dy.begin(), dy.end());
  const auto rows = std::find_if(dy.begin(), dy.end(), [](const Tensor& t) { return t.defined(); });
  const Shape flat = {(*rows).dim(0), weight.dim(1)};
  bool wanted = false;
  for (size_t i = 0; i < 2; ++i) {
    if (sink.wants(i)) out[i] = Tensor::empty(weight.engine(), flat, weight.dtype());
    wanted |= out[i].defined();
  }
  for (size_t p = 0; p < at.parts; ++p) {
    if (sink.wants(at.a(p))) out[2 + p] = empty_like(in[at.a(p)]);
    if (sink.wants(at.b(p))) out[2 + at.parts + p] = empty_like(in[at.b(p)]);
    wanted |= out[2 + p].defined() || out[2 + at.parts + p].defined();
  }
  if (!wanted) return;
  launch("linear_backward", in, out, [at](Launch& l) {
    Operands o = operands_of(l, at);
    const size_t u = at.operands(), grads = u + at.parts;
    for (size_t i = 0; i < at.linears; ++i) o.linears[i].y = l.in(grads + i);
    for (size_t p = 0; p < at.parts; ++p) {
      o.parts[p].u = l.in(u + p);
      o.parts[p].da = l.out(2 + p), o.parts[p].db = l.out(2 + at.parts + p);
    }
    return call(l.kernels->linear_backward, l.ctx,
                {.x = l.in(0),
                 .x_adapter = l.in(1),
                 .dx = l.out(0),
                 .dx_adapter = l.out(1),
                 .linears = o.linears.data(),
                 .count = static_cast<int32_t>(at.linears),
                 .parts = o.parts.data(),
                 .part_count = static_cast<int32_t>(at.parts)});
  });
  for (size_t i = 0; i < 2; ++i) {
    if (out[i].defined()) sink.add(i, out[i].view(kept.x_shape));
  }
  for (size_t p = 0; p < at.parts; ++p) {
    sink.add(at.a(p), out[2 + p]);
    sink.add(at.b(p), out[2 + at.parts + p]);
  }
}

void backward_weights(const Kept& kept, const std::vector<Tensor>& dy, GradSink& sink) {
  const Layout& at = kept.at;
  for (size_t i = 0; i < at.linears; ++i) {
    const bool wants_weight = sink.wants(at.weight(i)), wants_bias = sink.wants(at.bias(i));
    if (!dy[i].defined() || !(wants_weight || wants_bias)) continue;
    const DType wide = accumulator_dtype(dy[i].dtype());
    const auto gradient = [&](bool wanted, const Shape& shape) {
      return wanted ? Tensor::empty(dy[i].engine(), shape, wide) : Tensor();
    };
    const Tensor weight = kept.operands[at.weight(i)].get();
    const Tensor dweight = gradient(wants_weight, weight.shape());
    const Tensor dbias = gradient(wants_bias, {weight.dim(0)});
    const Tensor x = wants_weight ? kept.operands[0].get() : Tensor();
    using O = balora_linear_weight_backward;
    launch<O>("linear_weight_backward", &KernelTable::linear_weight_backward,
              {{&O::dy, dy[i]}, {&O::x, x}}, {{&O::dweight, dweight}, {&O::dbias, dbias}});
    sink.add(at.weight(i), dweight);
    sink.add(at.bias(i), dbias);
  }
}

bool wants(const Tensor& t) {
  return t.defined() && grad_wanted({t});
}

Kept keep_for_backward(const Layout& at, const Tensor& x, const std::vector<Tensor>& inputs,
                       const std::vector<Tensor>& flat, const std::vector<Tensor>& u) {
  Kept kept{at, x.shape(), {}, {}};
  bool needs_x = false;
  for (size_t i = 0; i < at.linears; ++i) needs_x |= wants(inputs[at.weight(i)]);
  for (size_t p = 0; p < at.parts; ++p) {
    needs_x |= !inputs[1].defined() && wants(inputs[at.a(p)]);
    kept.u.push_back(wants(inputs[at.b(p)]) ? Saved(u[p]) : Saved());
  }
  for (size_t i = 0; i < flat.size(); ++i) {
    const bool needed = i == 0 ? needs_x : flat[i].defined();
    const Tensor& origin = i < 2 ? inputs[i] : Tensor();
    kept.operands.push_back(needed ? Saved::remade(flat[i], origin) : Saved());
  }
  return kept;
}

}  // namespace

std::vector<Tensor> linear_group(const Tensor& x, const std::optional<Tensor>& x_adapter,
                                 const std::vector<Tensor>& weights,
                                 const std::vector<std::optional<Tensor>>& biases,
                                 const std::vector<Tensor>& a, const std::vector<Tensor>& b,
                                 const std::vector<double>& scales,
                                 const std::vector<int64_t>& targets,
                                 const std::vector<int64_t>& is_change) {
  Layout at{weights.size(), a.size(), scales, {}, {}};
  if (weights.empty()) throw ArgumentError("linear: no weight given");
  if (biases.size() != weights.size() || b.size() != a.size() || scales.size() != a.size() ||
      targets.size() != a.size() || is_change.size() != a.size()) {
    throw ArgumentError("linear: the lists of operands differ in length");
  }
  const Tensor rows = contiguous_rows(kOp, "x", x);
  if (x_adapter) {
    check_shape(kOp, "adapterInput", *x_adapter, x.shape(), "the shape of x");
    check_dtype(kOp, "adapterInput", *x_adapter, x.dtype());
  }
  std::vector<Tensor> inputs = {x, x_adapter.value_or(Tensor())}, outputs;
  for (size_t i = 0; i < at.linears; ++i) check_linear(x, weights[i], biases[i], i);
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  for (const auto& bias : biases) inputs.push_back(bias.value_or(Tensor()));
  const DType master = accumulator_dtype(x.dtype());
  for (size_t p = 0; p < at.parts; ++p) {
    if (targets[p] < 0 || targets[p] >= static_cast<int64_t>(at.linears)) {
      throw ArgumentError(
          concat("linear: part ", p, " belongs to linear ", targets[p], " of ", at.linears));
    }
    at.targets.push_back(static_cast<int32_t>(targets[p]));
    at.is_change.push_back(is_change[p] != 0);
    check_part(x, weights[targets[p]], a[p], b[p], p);
  }
  for (const Tensor& factor : a) inputs.push_back(cast(factor, master));
  for (const Tensor& factor : b) inputs.push_back(cast(factor, master));

  std::vector<Tensor> flat = {
      rows, x_adapter ? contiguous_rows(kOp, "adapterInput", *x_adapter) : Tensor()};
  for (size_t i = 2; i < inputs.size(); ++i) {
    flat.push_back(inputs[i].defined() ? contiguous(inputs[i].detach()) : Tensor());
  }
  std::vector<Tensor> out, u;
  for (size_t i = 0; i < at.linears; ++i) {
    Shape shape = x.shape();
    shape[shape.ndim() - 1] = weights[i].dim(0);
    outputs.push_back(Tensor::empty(x.engine(), shape, x.dtype()));
    out.push_back(outputs.back().view({rows.dim(0), weights[i].dim(0)}));
  }
  for (size_t p = 0; p < at.parts; ++p) {
    u.push_back(Tensor::empty(x.engine(), {rows.dim(0), a[p].dim(0)}, master));
  }
  out.insert(out.end(), u.begin(), u.end());
  launch(kOp, flat, out, [at](Launch& l) {
    Operands o = operands_of(l, at);
    for (size_t i = 0; i < at.linears; ++i) o.linears[i].y = l.out(i);
    for (size_t p = 0; p < at.parts; ++p) o.parts[p].u = l.out(at.linears + p);
    return call(l.kernels->linear_forward, l.ctx,
                {.x = l.in(0),
                 .x_adapter = l.in(1),
                 .linears = o.linears.data(),
                 .count = static_cast<int32_t>(at.linears),
                 .parts = o.parts.data(),
                 .part_count = static_cast<int32_t>(at.parts)});
  });

  if (!grad_wanted(inputs)) return outputs;
  record(kOp, inputs, outputs,
         [kept = keep_for_backward(at, x, inputs, flat, u)](std::span<const Tensor> dy,
                                                            GradSink& sink) {
           std::vector<Tensor> grads;
           for (const Tensor& g : dy) {
             grads.push_back(g.defined() ? contiguous_rows(kOp, "dy", g) : Tensor());
           }
           backward_low_rank(kept, grads, sink);
           backward_weights(kept, grads, sink);
         });
  return outputs;
}

}  // namespace balora
