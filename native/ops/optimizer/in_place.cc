// In-place ops of optimizers, one launch each: updates of flat buffers, AdamW steps of any
// number of parameters, SGD steps, and the norm of all gradients with its clipping coefficient,
// which stay on the device. Formulas are in kernels/shared/optimizer.h. No gradients: a
// tensor that wants one may be written only under noGrad (prepare_in_place).
#include <cmath>
#include <set>

#include "engine/launch.h"
#include "kernels/shared/op_codes.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

void check_target(const char* op, const char* name, const Tensor& t) {
  check_float(op, name, t);
  if (t.is_contiguous()) return;
  throw ArgumentError(concat(op, ": ", name, " is written in place and must be contiguous"));
}

// An element that several places of x share would hold the last value written, whichever that is.
void check_no_repeats(const char* op, const Tensor& x) {
  check_defined(op, "x", x);
  for (int i = 0; i < x.ndim() && x.numel() > 0; ++i) {
    if (x.dim(i) == 1 || x.strides()[i] != 0) continue;
    throw ArgumentError(concat(op, ": x ", x.shape().to_string(), " repeats its values along axis ",
                               i, " (expand) and cannot be written in place"));
  }
}

// Threads write x while others still read the source: one that shares memory with x is read from a
// copy, unless each element meets itself.
Tensor apart(const Tensor& source, const Tensor& x) {
  const TensorImpl &from = *source.impl(), &to = *x.impl();
  const bool same =
      from.offset == to.offset && from.shape == to.shape && from.strides == to.strides;
  if (from.storage != to.storage || same) return source.detach();
  Tensor copy = empty_like(source);
  using O = balora_copy;
  launch<O>("copy", &KernelTable::copy, {{&O::source, source.detach()}}, {{&O::destination, copy}});
  return copy;
}

// Writes x anew. A part of a tensor that has no value would leave the rest without one; a whole one
// may get a value back.
void overwrite(const char* op, std::initializer_list<Tensor> inputs, const Tensor& x, LaunchFn fn) {
  const bool whole = x.bytes() == x.impl()->storage->bytes();
  if (whole) return launch(op, inputs, {x}, std::move(fn));
  launch_in_place(op, inputs, {x}, std::move(fn));
}

// State that moves with param: its shape and dtype, contiguous.
void check_state(const char* op, const char* name, const Tensor& t, const Tensor& param) {
  check_shape(op, name, t, param.shape(), "the shape of param");
  check_dtype(op, name, t, param.dtype());
  check_same_engine(op, param, t);
  check_target(op, name, t);
}

void check_step(const char* op, const Tensor& param, const Tensor& grad,
                const std::optional<Tensor>& coefficient) {
  check_target(op, "param", param);
  if (accumulator_dtype(param.dtype()) != param.dtype()) {
    throw ArgumentError(concat(op, ": param must be f32 or f64, got ", dtype_name(param.dtype())));
  }
  check_shape(op, "grad", grad, param.shape(), "the shape of param");
  check_dtype(op, "grad", grad, param.dtype());
  check_same_engine(op, param, grad);
  if (!coefficient) return;
  check_shape(op, "coefficient", *coefficient, {});
  check_dtype(op, "coefficient", *coefficient, DType::kF64);
  check_same_engine(op, param, *coefficient);
}

constexpr const char* kAdamw = "adamw_step";

void check_adamw(const AdamwParameters& parameters, const std::optional<Tensor>& coefficient,
                 const AdamwOptions& options) {
  const auto& [params, grads, m, v, rates, weight_decays] = parameters;
  const size_t count = params.size();
  for (const size_t size : {grads.size(), m.size(), v.size(), rates.size(), weight_decays.size()}) {
    if (size != count) {
      throw ArgumentError(concat(kAdamw, ": the lists of operands differ in length"));
    }
  }
  const auto is_beta = [](double value) { return value >= 0 && value < 1; };
  if (!is_beta(options.beta1) || !is_beta(options.beta2)) {
    throw ArgumentError(concat(kAdamw, ": the betas must be in [0,1), got ", options.beta1, " and ",
                               options.beta2));
  }
  if (!(options.eps >= 0)) {
    throw ArgumentError(concat(kAdamw, ": eps must be >= 0, got ", options.eps));
  }
  std::set<std::pair<const Storage*, int64_t>> written;
  for (size_t i = 0; i < count; ++i) {
    check_step(kAdamw, params[i], grads[i], coefficient);
    check_same_engine(kAdamw, params[0], params[i]);
    check_state(kAdamw, "m", m[i], params[i]);
    check_state(kAdamw, "v", v[i], params[i]);
    check_shape(kAdamw, "rate", rates[i], {BALORA_RATE_SIZE}, "(3)");
    check_dtype(kAdamw, "rate", rates[i], DType::kF64);
    check_same_engine(kAdamw, params[i], rates[i]);
    const TensorImpl& impl = *params[i].impl();
    if (!written.insert({impl.storage.get(), impl.offset}).second && params[i].numel() > 0) {
      throw ArgumentError(concat(kAdamw, ": a parameter is given twice"));
    }
  }
}

// The tensors of one parameter in a launch.
struct AdamwSlots {
  Slot grad, rate, param, m, v;
  double weight_decay;
};

}  // namespace

void copy_in_place(Tensor x, const Tensor& source) {
  check_shape("copy_", "source", source, x.shape(), "the shape of x");
  check_same_engine("copy_", x, source);
  check_no_repeats("copy_", x);
  prepare_in_place("copy_", x);
  overwrite("copy_", {apart(source, x)}, x, [](Launch& l) {
    return call(l.kernels->copy, l.ctx, {.source = l.in(0), .destination = l.out(0)});
  });
}

void fill_in_place(Tensor x, double value) {
  check_no_repeats("fill_", x);
  prepare_in_place("fill_", x);
  overwrite("fill_", {}, x, [value](Launch& l) {
    return call(l.kernels->fill, l.ctx, {.y = l.out(0), .value = value});
  });
}

void add_in_place(Tensor x, const Tensor& source, double alpha) {
  check_target("add_", "x", x);
  check_float("add_", "source", source);
  check_shape("add_", "source", source, x.shape(), "the shape of x");
  check_same_engine("add_", x, source);
  prepare_in_place("add_", x);
  using O = balora_add_scaled;
  launch_in_place<O>("add_", &KernelTable::add_scaled,
                     {{&O::source, apart(contiguous(source.detach()), x)}}, {{&O::destination, x}},
                     {.alpha = alpha});
}

void scale_in_place(Tensor x, const Tensor& coefficient) {
  check_target("scale_", "x", x);
  check_shape("scale_", "coefficient", coefficient, {});
  check_dtype("scale_", "coefficient", coefficient, DType::kF64);
  check_same_engine("scale_", x, coefficient);
  prepare_in_place("scale_", x);
  using O = balora_scale;
  launch_in_place<O>("scale_", &KernelTable::scale, {{&O::coefficient, apart(coefficient, x)}},
                     {{&O::x, x}});
}

void adamw_steps(const AdamwParameters& parameters, const std::optional<Tensor>& coefficient,
                 const AdamwOptions& options) {
  const auto& [params, grads, m, v, rates, weight_decays] = parameters;
  check_adamw(parameters, coefficient, options);
  if (params.empty()) return;
  LaunchOperands all;
  const auto write = [&](Tensor t) {
    prepare_in_place(kAdamw, t);
    return all.write(t);
  };
  const Slot clip = all.read(coefficient.value_or(Tensor()));
  std::vector<AdamwSlots> slots;
  for (size_t i = 0; i < params.size(); ++i) {
    slots.push_back({.grad = all.read(contiguous(grads[i].detach())),
                     .rate = all.read(contiguous(rates[i].detach())),
                     .param = write(params[i]),
                     .m = write(m[i]),
                     .v = write(v[i]),
                     .weight_decay = weight_decays[i]});
  }
  launch_in_place(kAdamw, all, [clip, slots = std::move(slots), options](Launch& l) {
    std::vector<AdamwOperands> tensors;
    for (const AdamwSlots& each : slots) {
      tensors.push_back({.grad = l[each.grad],
                         .rate = l[each.rate],
                         .param = l[each.param],
                         .m = l[each.m],
                         .v = l[each.v],
                         .weight_decay = each.weight_decay});
    }
    const AdamwList list{tensors.data(), static_cast<int32_t>(tensors.size())};
    return call(l.kernels->adamw_step, l.ctx,
                {.tensors = &list,
                 .coefficient = l[clip],
                 .beta1 = options.beta1,
                 .beta2 = options.beta2,
                 .eps = options.eps});
  });
}

void sgd_step(Tensor param, const Tensor& grad, std::optional<Tensor> buffer,
              const std::optional<Tensor>& coefficient, const SgdOptions& options) {
  check_step("sgd_step", param, grad, coefficient);
  if ((options.momentum != 0) != buffer.has_value()) {
    throw ArgumentError("sgd_step: momentum needs a buffer, and only momentum does");
  }
  if (options.nesterov && (!(options.momentum > 0) || options.dampening != 0)) {
    throw ArgumentError("sgd_step: nesterov needs momentum > 0 and no dampening");
  }
  if (buffer) {
    check_state("sgd_step", "buffer", *buffer, param);
    prepare_in_place("sgd_step", *buffer);
  }
  prepare_in_place("sgd_step", param);
  using O = balora_sgd_step;
  launch_in_place<O>(
      "sgd_step", &KernelTable::sgd_step,
      {{&O::grad, contiguous(grad.detach())}, {&O::coefficient, coefficient.value_or(Tensor())}},
      {{&O::param, param}, {&O::buffer, buffer.value_or(Tensor())}},
      {.lr = options.lr,
       .momentum = options.momentum,
       .dampening = options.dampening,
       .weight_decay = options.weight_decay,
       .nesterov = options.nesterov,
       .first = options.first});
}

Tensor grad_norm(const std::vector<Tensor>& grads, const std::string& kind) {
  const balora_norm_kind code = kind == "1"   ? BALORA_NORM_1
                                : kind == "2" ? BALORA_NORM_2
                                              : BALORA_NORM_INF;
  if (code == BALORA_NORM_INF && kind != "inf") {
    throw ArgumentError("grad_norm: the norm must be 1, 2 or inf, got " + kind);
  }
  if (grads.empty()) throw ArgumentError("grad_norm: no tensor given");
  for (const Tensor& g : grads) check_float("grad_norm", "every tensor", g);
  const Tensor total = full(grads[0].engine(), {}, 0, DType::kF64);
  std::vector<Tensor> in;
  for (const Tensor& g : grads) in.push_back(contiguous(g.detach()));
  launch_in_place("grad_norm", in, std::vector<Tensor>{total}, [code](Launch& l) {
    std::vector<const View*> views;
    for (size_t i = 0; i < l.num_inputs; ++i) views.push_back(l.in(i));
    const ViewList list{views.data(), static_cast<int32_t>(views.size())};
    return call(l.kernels->norm_accumulate, l.ctx,
                {.tensors = &list, .total = l.out(0), .kind = code});
  });
  return code == BALORA_NORM_2 ? unary(total, "sqrt") : total;
}

// min(1, max_norm / (norm + 1e-6)), the guard of torch's clip_grad_norm_. A NaN stays one; an
// infinite norm gives 0.
Tensor clip_coefficient(const Tensor& norm, double max_norm) {
  check_shape("clip_coefficient", "norm", norm, {});
  check_dtype("clip_coefficient", "norm", norm, DType::kF64);
  if (!(max_norm > 0))
    throw ArgumentError(concat("clip_coefficient: maxNorm must be > 0, got ", max_norm));
  const Tensor limit = full(norm.engine(), {}, max_norm, DType::kF64);
  return clamp(binary(limit, affine(norm.detach(), 1, 1e-6), "div"), 0, 1);
}

}  // namespace balora
