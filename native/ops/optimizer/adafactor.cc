// One Adafactor step in place (formulas: kernels/shared/optimizer.h). No gradient.
#include "engine/launch.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr const char* kOp = "adafactor_step";

void check_state(const char* name, const Tensor& t, const Shape& shape, const Tensor& param) {
  check_shape(kOp, name, t, shape);
  check_dtype(kOp, name, t, param.dtype());
  check_same_engine(kOp, param, t);
  if (t.is_contiguous()) return;
  throw ArgumentError(concat(kOp, ": ", name, " is written in place and must be contiguous"));
}

// The shape without axis `skipped`.
Shape without(const Shape& shape, int skipped) {
  Shape out;
  for (int d = 0; d < shape.ndim(); ++d) {
    if (d != skipped) out.push_back(shape[d]);
  }
  return out;
}

void check_options(const AdafactorOptions& o) {
  const auto share = [](const char* name, double value) {
    if (value >= 0 && value < 1) return;
    throw ArgumentError(concat(kOp, ": ", name, " must be in [0,1), got ", value));
  };
  share("beta1", o.beta1), share("beta2", o.beta2);
  if (!(o.eps > 0)) throw ArgumentError(concat(kOp, ": eps must be > 0, got ", o.eps));
  if (!(o.clip > 0)) throw ArgumentError(concat(kOp, ": clip must be > 0, got ", o.clip));
}

}  // namespace

void adafactor_step(Tensor param, const Tensor& grad, AdafactorMoments moments,
                    const std::optional<Tensor>& coefficient, const AdafactorOptions& options) {
  auto& [row, column, m] = moments;
  check_float(kOp, "param", param);
  if (accumulator_dtype(param.dtype()) != param.dtype()) {
    throw ArgumentError(concat(kOp, ": param must be f32 or f64, got ", dtype_name(param.dtype())));
  }
  check_state("param", param, param.shape(), param);
  check_shape(kOp, "grad", grad, param.shape(), "the shape of param");
  check_dtype(kOp, "grad", grad, param.dtype());
  check_same_engine(kOp, param, grad);
  if (coefficient) {
    check_shape(kOp, "coefficient", *coefficient, {});
    check_dtype(kOp, "coefficient", *coefficient, DType::kF64);
    check_same_engine(kOp, param, *coefficient);
  }
  const int axes = param.ndim();
  if (column && axes < 2) throw ArgumentError(concat(kOp, ": a vector has no column moment"));
  check_state("row", row, column ? without(param.shape(), axes - 1) : param.shape(), param);
  if (column) check_state("column", *column, without(param.shape(), axes - 2), param);
  if (m) check_state("m", *m, param.shape(), param);
  check_options(options);
  for (Tensor* t : {&param, &row}) prepare_in_place(kOp, *t);
  if (column) prepare_in_place(kOp, *column);
  if (m) prepare_in_place(kOp, *m);
  using O = balora_adafactor_step;
  launch_in_place<O>(
      kOp, &KernelTable::adafactor_step,
      {{&O::grad, contiguous(grad.detach())}, {&O::coefficient, coefficient.value_or(Tensor())}},
      {{&O::param, param},
       {&O::row, row},
       {&O::column, column.value_or(Tensor())},
       {&O::m, m.value_or(Tensor())}},
      {.lr = options.lr,
       .beta1 = options.beta1,
       .beta2 = options.beta2,
       .eps = options.eps,
       .clip = options.clip,
       .weight_decay = options.weight_decay,
       .scale_floor = options.scale_floor});
}

}  // namespace balora
