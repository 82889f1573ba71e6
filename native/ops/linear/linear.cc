// Linears that share their input, each with any number of low-rank parts:
//   y_i = output_scale_i z_i + bias_i,
//   z_i = x W_i^T + x_adapter C_i^T
//         + sum over parts p of i: scale_p x_adapter (B_p A_p - B0_p A0_p)^T,
//   x_adapter = x unless given, B0 A0 where the part has a frozen start.
// x (...,I), W and its change C (O,I), A (R,I), B (O,R), output_scale and bias (O). Base, change
// and low-rank parts are summed in f32, scaled and rounded once; A and B are f32 (f64 beside f64),
// or of x's type and then widened. A frozen W and the start of a part never get a gradient. With dz
// = output_scale dy in x's type, the gradient of output_scale is the sum of dy z over the rows in
// f32, from z rounded to x's type. Without x_adapter, dx has dz (W + C) with that sum rounded to
// x's type, which saves a product: a gradient that is itself rounded does not show whether the
// weight was, while z must answer to a change far below the rounding of W. Kept for backward: x (or
// how to make it again), U = x A^T (N,R) and z, each only where a gradient needs it.
//
// Products with frozen weights (x W^T, dz W) are computed in int8 where EnqueueState::int8_products
// says so when the op is called; a change of W then has products of its own in dx. Where backward
// keeps x in int8, forward multiplies by the codes that it keeps, so that x is quantised once.
//
// Rows may be in groups: with row_offsets (G+1) i32 rows [row_offsets[g], row_offsets[g+1]) of x
// meet operands of their own, at g of W (G,O,I), its change, bias (G,O), A (G,R,I) and B (G,O,R).
#include <algorithm>
#include <cstring>

#include "kernels/shared/int8_rows.h"
#include "kernels/shared/messages.h"
#include "ops/linear/linear_group.h"
#include "ops/rows.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr const char* kOp = "linear";

// Without a stream, since it is made for every operand of every call.
std::string indexed(const char* name, size_t i) {
  return name + ('[' + std::to_string(i)) + ']';
}

void check_linear(const Tensor& x, const std::optional<Tensor>& row_offsets,
                  const LinearLayer& linear, size_t i) {
  const Tensor& weight = linear.weight;
  check_ndim(kOp, indexed("weight", i).c_str(), weight, row_offsets ? 3 : 2);
  const int64_t outs = weight.dim(-2), ins = x.dim(-1);
  const auto check = [&](const char* name, const Tensor& t, std::initializer_list<int64_t> extents,
                         const char* letters, DType dtype) {
    const std::string full = indexed(name, i);
    check_operand(kOp, full, t, weight, extents, letters);
    check_dtype(kOp, full.c_str(), t, dtype);
  };
  check("weight", weight, {outs, ins}, "O,I", x.dtype());
  check_same_engine(kOp, x, weight);
  if (linear.bias) check("bias", *linear.bias, {outs}, "O", x.dtype());
  if (linear.weight_change) {
    check("weightChange", *linear.weight_change, {outs, ins}, "O,I", x.dtype());
  }
  if (linear.output_scale) {
    check("outputScale", *linear.output_scale, {outs}, "O", accumulator_dtype(x.dtype()));
  }
  if (!row_offsets) return;
  check_shape(kOp, "rowOffsets", *row_offsets, {weight.dim(0) + 1}, "(G+1)");
  if (linear.output_scale) {
    throw UnsupportedError(concat("linear: ", indexed("outputScale", i),
                                  " beside rowOffsets: groups of rows have no output scales"));
  }
}

// Throws where linears by groups of rows are not computed.
void check_row_offsets(const Tensor& rows, const Tensor& row_offsets) {
  check_dtype(kOp, "rowOffsets", row_offsets, DType::kI32);
  check_ndim(kOp, "rowOffsets", row_offsets, 1);
  check_same_engine(kOp, rows, row_offsets);
  check_rows_i32(kOp, "x", rows);
  if (std::strcmp(rows.engine().device(), "cpu") != 0) {
    throw UnsupportedError(
        concat("linear: rowOffsets are taken on the CPU alone, not on ", rows.engine().device()));
  }
  if ((rows.engine().state().int8_products & ~kInt8Saved) != 0) {
    throw UnsupportedError("linear: rowOffsets are not taken where products are in int8");
  }
}

// The factor in the type of the sums, to which it may have to be widened.
Tensor master_of(const Tensor& x, const std::string& name, const Tensor& factor) {
  const DType master = accumulator_dtype(x.dtype());
  if (factor.dtype() != master && factor.dtype() != x.dtype()) {
    const std::string other = master == x.dtype() ? "" : concat(" or ", dtype_name(x.dtype()));
    throw ArgumentError(concat("linear: ", name, " must be ", dtype_name(master), other, ", got ",
                               dtype_name(factor.dtype())));
  }
  return cast(factor, master);
}

// The operands as they were given, checked, factors in the type of the sums.
GroupOf<Tensor> checked_group(const Tensor& x, const std::optional<Tensor>& x_adapter,
                              const std::optional<Tensor>& row_offsets,
                              const std::vector<LinearLayer>& linears) {
  if (linears.empty()) throw ArgumentError("linear: no weight given");
  if (x_adapter) {
    check_shape(kOp, "adapterInput", *x_adapter, x.shape(), "the shape of x");
    check_dtype(kOp, "adapterInput", *x_adapter, x.dtype());
  }
  GroupOf<Tensor> group{.x = x, .x_adapter = x_adapter.value_or(Tensor())};
  size_t part_count = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    check_linear(x, row_offsets, linears[i], i);
    LinearOf<Tensor>& linear = group.linears.emplace_back();
    linear.weight = linears[i].weight, linear.bias = linears[i].bias.value_or(Tensor());
    linear.output_scale = linears[i].output_scale.value_or(Tensor());
    linear.weight_change = linears[i].weight_change.value_or(Tensor());
    for (const LowRankPart& part : linears[i].low_rank) {
      const PartNames names{indexed("", part_count++)};
      PartOf<Tensor>& p = linear.parts.emplace_back();
      p.form = checked_form(kOp, names, part, linear.weight);
      p.a = master_of(x, names.of("a"), part.a), p.b = master_of(x, names.of("b"), part.b);
      if (part.start) {
        p.start_a = master_of(x, names.of("start.a"), part.start->a);
        p.start_b = master_of(x, names.of("start.b"), part.start->b);
      }
      p.scale = part.scale;
    }
  }
  return group;
}

// The tape's inputs, and the place of each operand among them.
constexpr size_t kNoInput = SIZE_MAX;
struct TapeInputs {
  std::vector<Tensor> tensors;
  GroupOf<size_t> at;

  explicit TapeInputs(const GroupOf<Tensor>& group) {
    at = map_group<size_t>(group, [this](const Tensor& t) {
      if (!t.defined()) return kNoInput;
      tensors.push_back(t);
      return tensors.size() - 1;
    });
  }
};

// How the products with frozen weights are computed: BALORA_INT8_*.
struct Int8Forms {
  int32_t forward = BALORA_INT8_OFF, dx = BALORA_INT8_OFF;

  // The forms that are set for the engine of x.
  explicit Int8Forms(const Tensor& x) {
    const int set = x.engine().state().int8_products & ~kInt8Saved;
    if (set == 0) return;
    const auto refuse = [](auto&&... why) {
      throw UnsupportedError(concat("linear: ", why..., ", not in int8"));
    };
    if (x.dtype() == DType::kF64) refuse("f64 is computed in f64");
    if (std::strcmp(x.engine().device(), "cpu") != 0) {
      refuse("the device ", x.engine().device(), " computes in the activations' type");
    }
    if (set & kInt8Forward) forward = BALORA_INT8_ROTATED;
    const bool rotated = (set & (kInt8Forward | kInt8Rotated)) != 0;
    if (set & kInt8InputGradient) dx = rotated ? BALORA_INT8_ROTATED : BALORA_INT8_PLAIN;
  }
};

// Everything the backward pass keeps.
struct Kept {
  GroupOf<size_t> at;
  GroupOf<Saved> operands;  // x, u and the unscaled sums only if a gradient needs them
  Shape x_shape;
  int32_t int8;  // BALORA_INT8_* of dx
};

bool wants(const Tensor& t) {
  return t.defined() && grad_wanted({t});
}

// Refuses a weight whose sums of codes might not fit into 32 bits.
void check_int8_terms(const GroupOf<Tensor>& group, const Int8Forms& forms) {
  if (forms.forward == BALORA_INT8_OFF && forms.dx == BALORA_INT8_OFF) return;
  for (const LinearOf<Tensor>& linear : group.linears) {
    const int64_t outs = linear.weight.dim(0), ins = linear.weight.dim(1);
    if (!linear.weight.frozen() || std::max(outs, ins) <= kInt8MostTerms) continue;
    throw UnsupportedError("linear: " + messages::int8_terms(outs, ins));
  }
}

// Whether a gradient reads x.
bool reads_x(const GroupOf<Tensor>& given) {
  const bool apart = given.x_adapter.defined();
  return std::any_of(given.linears.begin(), given.linears.end(), [apart](const auto& linear) {
    const auto reads = [](const PartOf<Tensor>& part) { return wants(part.a); };
    return wants(linear.weight) ||
           (!apart && (wants(linear.weight_change) ||
                       std::any_of(linear.parts.begin(), linear.parts.end(), reads)));
  });
}

// The codes of x that forward multiplies by: those that are kept for backward. Null: x is quantised
// for this op alone.
std::shared_ptr<const Int8Activation> codes_of(const GroupOf<Tensor>& given, const Tensor& rows,
                                               const Int8Forms& forms) {
  if (forms.forward == BALORA_INT8_OFF) return nullptr;
  if (!reads_x(given) || has_recipe(given.x)) return Int8Activation::kept(rows);
  return Int8Activation::of(rows);
}

// `given` as the caller has it; `flat` with rows of x, contiguous factors, and what forward made.
Kept keep_for_backward(const GroupOf<size_t>& at, const GroupOf<Tensor>& given,
                       const GroupOf<Tensor>& flat, const Int8Forms& forms) {
  const auto save = [](const Tensor& t) { return t.defined() ? Saved(t) : Saved(); };
  Kept kept{at, {.row_offsets = save(flat.row_offsets)}, given.x.shape(), forms.dx};
  if (flat.x_adapter.defined()) {
    kept.operands.x_adapter = Saved::remade(flat.x_adapter, given.x_adapter);
  }
  for (size_t i = 0; i < flat.linears.size(); ++i) {
    const LinearOf<Tensor>&linear = flat.linears[i], &origin = given.linears[i];
    LinearOf<Saved>& saved = kept.operands.linears.emplace_back();
    saved.weight = Saved(linear.weight), saved.weight_change = save(linear.weight_change);
    saved.output_scale = save(linear.output_scale), saved.unscaled = save(linear.unscaled);
    for (size_t p = 0; p < linear.parts.size(); ++p) {
      saved.parts.push_back(map_part<Saved>(linear.parts[p], save));
      if (!wants(origin.parts[p].b)) saved.parts[p].u = Saved();
    }
  }
  if (reads_x(given)) kept.operands.x = Saved::remade(flat.x, given.x);
  return kept;
}

// The gradients of the inputs and the parts that the sink wants, to be computed.
GroupOf<Tensor> wanted_gradients(const Kept& kept, const GroupOf<Tensor>& operands, int64_t rows,
                                 const GradSink& sink) {
  const auto wanted = [&](size_t input) { return input != kNoInput && sink.wants(input); };
  const Tensor& weight = operands.linears[0].weight;
  const Shape flat = {rows, weight.dim(-1)};
  const auto input = [&](size_t at) {
    return wanted(at) ? Tensor::empty(weight.engine(), flat, weight.dtype()) : Tensor();
  };
  GroupOf<Tensor> out{.dx = input(kept.at.x), .dx_adapter = input(kept.at.x_adapter)};
  for (size_t i = 0; i < operands.linears.size(); ++i) {
    LinearOf<Tensor>& linear = out.linears.emplace_back();
    for (size_t p = 0; p < operands.linears[i].parts.size(); ++p) {
      const PartOf<Tensor>& part = operands.linears[i].parts[p];
      const PartOf<size_t>& at = kept.at.linears[i].parts[p];
      PartOf<Tensor>& gradients = linear.parts.emplace_back();
      if (wanted(at.a)) gradients.da = empty_like(part.a);
      if (wanted(at.b)) gradients.db = empty_like(part.b);
    }
  }
  return out;
}

// The gradients of output scales, and of the biases behind them; dy becomes the gradient of the
// sums before the scale.
void backward_output_scales(const Kept& kept, std::vector<Tensor>& dy, GradSink& sink) {
  for (size_t i = 0; i < dy.size(); ++i) {
    const LinearOf<size_t>& at = kept.at.linears[i];
    const LinearOf<Saved>& saved = kept.operands.linears[i];
    if (!dy[i].defined() || !saved.output_scale.defined()) continue;
    const auto columns = [&](size_t input) {
      if (input == kNoInput || !sink.wants(input)) return Tensor();
      return Tensor::empty(dy[i].engine(), {dy[i].dim(1)}, accumulator_dtype(dy[i].dtype()));
    };
    const Tensor dsum = empty_like(dy[i]);
    const Tensor dscale = columns(at.output_scale), dbias = columns(at.bias);
    using O = balora_column_scale_backward;
    launch<O>("linear_backward", &KernelTable::column_scale_backward,
              {{&O::dy, dy[i]},
               {&O::x, dscale.defined() ? saved.unscaled.get() : Tensor()},
               {&O::scale, saved.output_scale.get()}},
              {{&O::dx, dsum}, {&O::dscale, dscale}, {&O::dbias, dbias}});
    if (dscale.defined()) sink.add(at.output_scale, dscale);
    if (dbias.defined()) sink.add(at.bias, dbias);
    dy[i] = dsum;
  }
}

// Enqueues the backward pass of `operands`, which have dy in the place of y.
void launch_backward(const GroupOf<Tensor>& operands, const GroupOf<Tensor>& out, int32_t int8) {
  LaunchOperands all;
  GroupOf<Slot> slots = map_group<Slot>(operands, [&](const Tensor& t) { return all.read(t); });
  slots.dx = all.write(out.dx), slots.dx_adapter = all.write(out.dx_adapter);
  for (size_t i = 0; i < out.linears.size(); ++i) {
    for (size_t p = 0; p < out.linears[i].parts.size(); ++p) {
      PartOf<Slot>& part = slots.linears[i].parts[p];
      part.da = all.write(out.linears[i].parts[p].da);
      part.db = all.write(out.linears[i].parts[p].db);
    }
  }
  if (all.outputs().empty()) return;
  launch("linear_backward", all, [slots, int8](Launch& l) {
    const KernelLinears linears(l, slots);
    return call(l.kernels->linear_backward, l.ctx,
                {.x = l[slots.x],
                 .x_adapter = l[slots.x_adapter],
                 .dx = l[slots.dx],
                 .dx_adapter = l[slots.dx_adapter],
                 .linears = linears.data(),
                 .count = linears.count(),
                 .int8 = int8,
                 .row_offsets = l[slots.row_offsets]});
  });
}

// The part of the changes of weights in the gradient of their input, as a product of its own: the
// sum of dy C. Undefined without a change.
Tensor changes_gradient(const GroupOf<Tensor>& operands) {
  GroupOf<Tensor> changes{.row_offsets = operands.row_offsets}, out;
  for (const LinearOf<Tensor>& linear : operands.linears) {
    if (!linear.weight_change.defined() || !linear.y.defined()) continue;
    changes.linears.push_back({.weight = linear.weight_change, .y = linear.y});
    out.dx = Tensor::empty(linear.y.engine(), {linear.y.dim(0), linear.weight.dim(-1)},
                           linear.y.dtype());
  }
  out.linears.resize(changes.linears.size());
  launch_backward(changes, out, BALORA_INT8_OFF);
  return out.dx;
}

// da and db of the parts and the gradients of the inputs.
void backward_parts(const Kept& kept, const std::vector<Tensor>& dy, GradSink& sink) {
  GroupOf<Tensor> operands = map_group<Tensor>(
      kept.operands, [](const Saved& s) { return s.defined() ? s.get() : Tensor(); });
  const auto used = std::find_if(dy.begin(), dy.end(), [](const Tensor& t) { return t.defined(); });
  const GroupOf<Tensor> out = wanted_gradients(kept, operands, used->dim(0), sink);
  for (size_t i = 0; i < dy.size(); ++i) {
    LinearOf<Tensor>& linear = operands.linears[i];
    linear.y = dy[i];
    linear.output_scale = linear.unscaled = Tensor();
    linear.weight = linear.weight.as_encoded();
  }
  // A weight in blocks cannot be added to, nor one whose copy in int8 is multiplied.
  const bool in_int8 = kept.int8 != BALORA_INT8_OFF;
  const bool is_separate = std::any_of(
      operands.linears.begin(), operands.linears.end(), [in_int8](const LinearOf<Tensor>& linear) {
        return linear.weight_change.defined() && (in_int8 || linear.weight.encoding());
      });
  const bool is_apart = operands.x_adapter.defined();
  if (is_apart ? out.dx_adapter.defined() : is_separate && out.dx.defined()) {
    const Tensor dx = changes_gradient(operands);
    if (dx.defined()) sink.add(is_apart ? kept.at.x_adapter : kept.at.x, dx.view(kept.x_shape));
  }
  for (LinearOf<Tensor>& linear : operands.linears) {
    const bool is_summed = out.dx.defined() && !is_apart && !is_separate;
    if (is_summed && linear.weight_change.defined() && linear.y.defined()) {
      linear.weight = binary(linear.weight, linear.weight_change, "add");
    }
    linear.weight_change = Tensor();
  }
  launch_backward(operands, out, kept.int8);
  if (out.dx.defined()) sink.add(kept.at.x, out.dx.view(kept.x_shape));
  if (out.dx_adapter.defined()) sink.add(kept.at.x_adapter, out.dx_adapter.view(kept.x_shape));
  for (size_t i = 0; i < dy.size(); ++i) {
    for (size_t p = 0; p < out.linears[i].parts.size(); ++p) {
      sink.add(kept.at.linears[i].parts[p].a, out.linears[i].parts[p].da);
      sink.add(kept.at.linears[i].parts[p].b, out.linears[i].parts[p].db);
    }
  }
}

void backward_weights(const Kept& kept, const std::vector<Tensor>& dy, GradSink& sink) {
  const bool is_apart = kept.at.x_adapter != kNoInput;
  for (size_t i = 0; i < dy.size(); ++i) {
    const LinearOf<size_t>& at = kept.at.linears[i];
    const bool wants_weight = sink.wants(at.weight), is_scaled = at.output_scale != kNoInput;
    const bool wants_change = at.weight_change != kNoInput && sink.wants(at.weight_change);
    const bool wants_bias = !is_scaled && at.bias != kNoInput && sink.wants(at.bias);
    if (!dy[i].defined() || !(wants_weight || wants_change || wants_bias)) continue;
    const Saved& row_offsets = kept.operands.row_offsets;
    const Shape shape = kept.operands.linears[i].weight.get().shape();
    const Shape columns = row_offsets.defined() ? Shape{shape[0], shape[1]} : Shape{shape[0]};
    const auto gradient = [&](bool wanted, const Shape& of) {
      const DType wide = accumulator_dtype(dy[i].dtype());
      return wanted ? Tensor::empty(dy[i].engine(), of, wide) : Tensor();
    };
    const auto compute = [&](const Saved& input, const Tensor& dweight, const Tensor& dbias) {
      using O = balora_linear_weight_backward;
      launch<O>("linear_weight_backward", &KernelTable::linear_weight_backward,
                {{&O::dy, dy[i]},
                 {&O::x, dweight.defined() ? input.get() : Tensor()},
                 {&O::row_offsets, row_offsets.defined() ? row_offsets.get() : Tensor()}},
                {{&O::dweight, dweight}, {&O::dbias, dbias}});
    };
    const Saved& input = is_apart ? kept.operands.x_adapter : kept.operands.x;
    const Tensor dbias = gradient(wants_bias, columns);
    Tensor dweight = gradient(wants_weight, shape);
    if (wants_weight || wants_bias) compute(kept.operands.x, dweight, dbias);
    Tensor dchange = is_apart ? Tensor() : dweight;  // the weight's, where their inputs are one
    if (wants_change && !dchange.defined()) {
      dchange = gradient(true, shape);
      compute(input, dchange, Tensor());
    }
    if (wants_weight) sink.add(at.weight, dweight);
    if (wants_change) sink.add(at.weight_change, dchange);
    if (wants_bias) sink.add(at.bias, dbias);
  }
}

// How the products of a forward pass are computed.
struct ForwardForm {
  int32_t int8;  // BALORA_INT8_*
  bool batch_invariant;
};

// Enqueues the forward pass; `flat` has its outputs: y, u and the unscaled sums.
void launch_forward(const GroupOf<Tensor>& flat, const ForwardForm& form,
                    const Int8Activation* codes) {
  LaunchOperands all;
  GroupOf<Tensor> inputs = flat;
  for (LinearOf<Tensor>& linear : inputs.linears) {
    linear.y = linear.unscaled = Tensor();
    for (PartOf<Tensor>& part : linear.parts) part.u = Tensor();
  }
  GroupOf<Slot> slots = map_group<Slot>(inputs, [&](const Tensor& t) { return all.read(t); });
  for (size_t i = 0; i < flat.linears.size(); ++i) {
    const LinearOf<Tensor>& linear = flat.linears[i];
    slots.linears[i].y = all.write(linear.y);
    slots.linears[i].unscaled = all.write(linear.unscaled);
    for (size_t p = 0; p < linear.parts.size(); ++p) {
      slots.linears[i].parts[p].u = all.write(linear.parts[p].u);
    }
  }
  const Slot x_codes = codes ? all.read(codes->codes()) : Slot();
  const Slot x_scales = codes ? all.read(codes->scales()) : Slot();
  launch(kOp, all, [=](Launch& l) {
    const KernelLinears linears(l, slots);
    return call(l.kernels->linear_forward, l.ctx,
                {.x = l[slots.x],
                 .x_adapter = l[slots.x_adapter],
                 .linears = linears.data(),
                 .count = linears.count(),
                 .batch_invariant = form.batch_invariant,
                 .int8 = form.int8,
                 .x_codes = l[x_codes],
                 .x_scales = l[x_scales],
                 .row_offsets = l[slots.row_offsets]});
  });
}

// Offers to compute each output again, by the product of its linear alone. Not where x is kept in
// int8, whose values would give another product.
void offer_products(const GroupOf<Tensor>& given, const GroupOf<Tensor>& flat,
                    const ForwardForm& form, const std::vector<Tensor>& outputs) {
  const EnqueueState& state = given.x.engine().state();
  if (!state.recompute_products || (state.int8_products & kInt8Saved) != 0) return;
  const auto save = [](const Tensor& t) { return t.defined() ? Saved(t) : Saved(); };
  const auto get = [](const Saved& s) { return s.defined() ? s.get() : Tensor(); };
  for (size_t i = 0; i < outputs.size(); ++i) {
    GroupOf<Tensor> inputs{.row_offsets = flat.row_offsets, .linears = {flat.linears[i]}};
    inputs.linears[0].y = inputs.linears[0].unscaled = Tensor();
    for (PartOf<Tensor>& part : inputs.linears[0].parts) part.u = Tensor();
    GroupOf<Saved> kept = map_group<Saved>(inputs, save);
    kept.x = Saved::remade(flat.x, given.x);
    if (flat.x_adapter.defined()) {
      kept.x_adapter = Saved::remade(flat.x_adapter, given.x_adapter);
    }
    offer_product(outputs[i], [kept = std::move(kept), get, shape = outputs[i].shape(), form] {
      GroupOf<Tensor> group = map_group<Tensor>(kept, get);
      Tensor again = Tensor::empty(group.x.engine(), shape, group.x.dtype());
      LinearOf<Tensor>& linear = group.linears[0];
      linear.weight = linear.weight.as_encoded();
      linear.y = again.view({group.x.dim(0), linear.weight.dim(-2)});
      for (PartOf<Tensor>& part : linear.parts) {
        part.u = Tensor::empty(again.engine(), {group.x.dim(0), part.a.dim(-2)}, part.a.dtype());
      }
      launch_forward(group, form, nullptr);
      return again;
    });
  }
}

}  // namespace

std::vector<Tensor> linear_group(const Tensor& x, const std::optional<Tensor>& x_adapter,
                                 const std::optional<Tensor>& row_offsets,
                                 const std::vector<LinearLayer>& linears) {
  const Tensor rows = contiguous_rows(kOp, "x", x);
  if (row_offsets) check_row_offsets(rows, *row_offsets);
  const GroupOf<Tensor> given = checked_group(x, x_adapter, row_offsets, linears);
  const Int8Forms forms(x);
  check_int8_terms(given, forms);
  GroupOf<Tensor> in_rows = given;
  in_rows.x = rows;
  if (x_adapter) in_rows.x_adapter = contiguous_rows(kOp, "adapterInput", *x_adapter);
  in_rows.row_offsets = row_offsets.value_or(Tensor());
  GroupOf<Tensor> flat = map_group<Tensor>(
      in_rows, [](const Tensor& t) { return t.defined() ? contiguous(t.detach()) : Tensor(); });
  for (LinearOf<Tensor>& linear : flat.linears) linear.weight = linear.weight.as_encoded();
  std::vector<Tensor> outputs;
  for (LinearOf<Tensor>& linear : flat.linears) {
    Shape shape = x.shape();
    shape[shape.ndim() - 1] = linear.weight.dim(-2);
    outputs.push_back(Tensor::empty(x.engine(), shape, x.dtype()));
    linear.y = outputs.back().view({rows.dim(0), linear.weight.dim(-2)});
    if (wants(given.linears[outputs.size() - 1].output_scale))
      linear.unscaled = empty_like(linear.y);
    for (PartOf<Tensor>& part : linear.parts) {
      part.u = Tensor::empty(x.engine(), {rows.dim(0), part.a.dim(-2)}, part.a.dtype());
    }
  }
  // Held until keep_for_backward() shares them: without an owner they would be made again there.
  const std::shared_ptr<const Int8Activation> codes = codes_of(given, flat.x, forms);
  const ForwardForm form{forms.forward, x.engine().state().batch_invariant};
  launch_forward(flat, form, codes.get());

  if (!x.engine().state().grad_enabled) return outputs;
  const TapeInputs inputs(given);
  if (!grad_wanted(inputs.tensors)) return outputs;
  record(kOp, inputs.tensors, outputs,
         [kept = keep_for_backward(inputs.at, given, flat, forms)](std::span<const Tensor> dy,
                                                                   GradSink& sink) {
           std::vector<Tensor> grads;
           for (const Tensor& g : dy) {
             grads.push_back(g.defined() ? contiguous_rows(kOp, "dy", g) : Tensor());
           }
           backward_output_scales(kept, grads, sink);
           backward_parts(kept, grads, sink);
           backward_weights(kept, grads, sink);
         });
  offer_products(given, flat, form, outputs);
  return outputs;
}

}  // namespace balora
