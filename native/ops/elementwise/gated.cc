// Gated activations: y = act(gate) * up, act one of silu (swiglu), gelu, gelu_tanh (geglu). Kept
// for backward: gate and up only; act is recomputed, and so is up, where the engine repeats
// products. gate and up may be row-strided halves of one fused product.
#include "engine/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

balora_activation activation_of(const std::string& activation) {
  if (activation == "silu") return BALORA_GATE_SILU;
  if (activation == "gelu") return BALORA_GATE_GELU;
  if (activation == "gelu_tanh") return BALORA_GATE_GELU_TANH;
  throw ArgumentError("gated: activation must be silu, gelu or gelu_tanh, got " + activation);
}

// (N,F) rows, strided only when the tensor has two dimensions.
Tensor gated_rows(const Tensor& x) {
  return x.ndim() == 2 ? row_strided(x) : contiguous_rows("gated", "gate", x);
}

}  // namespace

Tensor gated(const Tensor& gate, const Tensor& up, const std::string& activation) {
  check_float("gated", "gate", gate);
  if (gate.ndim() < 1) throw ArgumentError("gated: gate needs at least one dimension");
  check_shape("gated", "up", up, gate.shape(), "the shape of gate");
  check_dtype("gated", "up", up, gate.dtype());
  const balora_activation act = activation_of(activation);
  const Tensor g = gated_rows(gate), u = gated_rows(up);
  Tensor y = Tensor::empty(gate.engine(), gate.shape(), gate.dtype());
  const auto enqueue = [act](const Tensor& from, const Tensor& by, const Tensor& to) {
    using O = balora_gated_forward;
    launch<O>("gated", &KernelTable::gated_forward, {{&O::gate, from}, {&O::up, by}},
              {{&O::y, to.view(from.shape())}}, {.activation = act});
  };
  enqueue(g, u, y);

  const bool recorded = grad_wanted({gate, up});
  const Saved saved_gate = Saved::activation(g, recorded),
              saved_up = Saved::repeated(u, up, recorded);
  record("gated", {gate, up}, {y},
         [g = saved_gate, u = saved_up, shape = gate.shape(), act](std::span<const Tensor> dy,
                                                                   GradSink& sink) {
           const Tensor gate_rows = g.get();
           const Tensor dgate =
               Tensor::empty(gate_rows.engine(), gate_rows.shape(), gate_rows.dtype());
           const Tensor dup = empty_like(dgate);
           using O = balora_gated_backward;
           launch<O>("gated_backward", &KernelTable::gated_backward,
                     {{&O::dy, contiguous(dy[0]).view(dgate.shape())},
                      {&O::gate, gate_rows},
                      {&O::up, u.get()}},
                     {{&O::dgate, dgate}, {&O::dup, dup}}, {.activation = act});
           u.done();
           sink.add(0, dgate.view(shape));
           sink.add(1, dup.view(shape));
         });
  offer_recipe(y, [g = saved_gate, u = saved_up, shape = y.shape(), enqueue] {
    const Tensor rows = g.get();
    Tensor again = Tensor::empty(rows.engine(), shape, rows.dtype());
    enqueue(rows, u.get(), again);
    return again;
  });
  return y;
}

}  // namespace balora
