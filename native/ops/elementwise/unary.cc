// Elementwise functions of one tensor by name, from one table; formulas and slopes are in
// kernels/shared/unary.h. Kept for backward: the result where the slope is cheapest from
// it, else the operand.
#include <cmath>

#include "engine/launch.h"
#include "kernels/shared/op_codes.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

struct UnaryRow {
  const char* name;
  balora_unary_op code;
  bool saves_result;
};

constexpr UnaryRow kUnary[] = {
    {"neg", BALORA_NEG, false},
    {"abs", BALORA_ABS, false},
    {"exp", BALORA_EXP, true},
    {"log", BALORA_LOG, false},
    {"sqrt", BALORA_SQRT, true},
    {"rsqrt", BALORA_RSQRT, true},
    {"square", BALORA_SQUARE, false},
    {"sin", BALORA_SIN, false},
    {"cos", BALORA_COS, false},
    {"tanh", BALORA_TANH, true},
    {"sigmoid", BALORA_SIGMOID, true},
    {"relu", BALORA_RELU, true},
    {"silu", BALORA_SILU, false},
    {"gelu", BALORA_GELU, false},
    {"gelu_tanh", BALORA_GELU_TANH, false},
    {"softplus", BALORA_SOFTPLUS, false},
};
constexpr UnaryRow kClamp{"clamp", BALORA_CLAMP, false};

Tensor apply(const UnaryRow& row, const Tensor& x, double a = 0, double b = 0) {
  check_float(row.name, "x", x);
  const Tensor xc = contiguous(x.detach());
  Tensor y = empty_like(xc);
  const balora_unary_op code = row.code;
  using O = balora_unary;
  launch<O>(row.name, &KernelTable::unary, {{&O::x, xc}}, {{&O::y, y}},
            {.op = code, .a = a, .b = b});
  record(row.name, {x}, {y},
         [name = row.name, code, a, b, saved = Saved(row.saves_result ? y : xc)](
             std::span<const Tensor> dy, GradSink& sink) {
           const Tensor dx = empty_like(dy[0]);
           using O = balora_unary_backward;
           launch<O>(name, &KernelTable::unary_backward,
                     {{&O::dy, contiguous(dy[0])}, {&O::saved, saved.get()}}, {{&O::dx, dx}},
                     {.op = code, .a = a, .b = b});
           sink.add(0, dx);
         });
  return y;
}

}  // namespace

Tensor unary(const Tensor& x, const std::string& name) {
  for (const UnaryRow& row : kUnary) {
    if (name == row.name) return apply(row, x);
  }
  throw ArgumentError("unary: there is no function \"" + name + "\"");
}

Tensor clamp(const Tensor& x, double low, double high) {
  if (!(low <= high)) {
    throw ArgumentError(concat("clamp: low must not be above high, got ", low, " and ", high));
  }
  return apply(kClamp, x, low, high);
}

// Its slope is a constant, so nothing is kept.
Tensor affine(const Tensor& x, double a, double b) {
  check_float("affine", "x", x);
  Tensor y = empty_like(x);
  using O = balora_unary;
  launch<O>("affine", &KernelTable::unary, {{&O::x, contiguous(x.detach())}}, {{&O::y, y}},
            {.op = BALORA_AFFINE, .a = a, .b = b});
  record(
      "affine", {x}, {y},
      [a](std::span<const Tensor> dy, GradSink& sink) { sink.add(0, affine(dy[0], a, 0)); },
      Gradient::kAnyFloat);
  return y;
}

}  // namespace balora
