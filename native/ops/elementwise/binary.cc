// Elementwise ops on two tensors that broadcast, by name; comparisons, where and the finiteness
// test. Operands have one dtype: a mixed pair is refused, never promoted. Gradients are summed back
// over the stretched axes, in f64.
#include "engine/launch.h"
#include "kernels/shared/op_codes.h"
#include "ops/axes.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

struct BinaryRow {
  const char* name;
  balora_binary_op code;
  bool whole_numbers;  // defined on i32 and i64
};
constexpr BinaryRow kBinary[] = {
    {"add", BALORA_ADD, true},         {"sub", BALORA_SUB, true},
    {"mul", BALORA_MUL, true},         {"div", BALORA_DIV, false},
    {"pow", BALORA_POW, false},        {"maximum", BALORA_MAXIMUM, true},
    {"minimum", BALORA_MINIMUM, true},
};

struct CompareRow {
  const char* name;
  balora_compare_op code;
};
constexpr CompareRow kCompare[] = {
    {"equal", BALORA_EQUAL},     {"not_equal", BALORA_NOT_EQUAL},
    {"less", BALORA_LESS},       {"less_equal", BALORA_LESS_EQUAL},
    {"greater", BALORA_GREATER}, {"greater_equal", BALORA_GREATER_EQUAL},
};

void check_pair(const char* op, const Tensor& a, const Tensor& b) {
  check_defined(op, "a", a);
  check_dtype(op, "b", b, a.dtype());
  check_same_engine(op, a, b);
}

Tensor run(const char* op, const Tensor& a, const Tensor& b, const Shape& shape,
           balora_binary_op code) {
  Tensor y = Tensor::empty(a.engine(), shape, a.dtype());
  using O = balora_binary;
  launch<O>(op, &KernelTable::binary,
            {{&O::a, broadcast_view(a, shape)}, {&O::b, broadcast_view(b, shape)}}, {{&O::y, y}},
            {.op = code});
  return y;
}

// add, sub and mul need no kernel of their own.
void linear_backward(balora_binary_op code, const Tensor& dy, const Saved& a, const Saved& b,
                     const Shape& a_shape, const Shape& b_shape, GradSink& sink) {
  const auto times = [&](const Tensor& other) {
    return run("mul", dy, other, dy.shape(), BALORA_MUL);
  };
  if (sink.wants(0)) sink.add(0, sum_to_shape(code == BALORA_MUL ? times(b.get()) : dy, a_shape));
  if (!sink.wants(1)) return;
  const Tensor summed = sum_to_shape(code == BALORA_MUL ? times(a.get()) : dy, b_shape);
  sink.add(1, code == BALORA_SUB ? affine(summed, -1, 0) : summed);
}

void curved_backward(const char* op, balora_binary_op code, const Tensor& dy, const Tensor& a,
                     const Tensor& b, GradSink& sink) {
  const Tensor da = sink.wants(0) ? empty_like(dy) : Tensor();
  const Tensor db = sink.wants(1) ? empty_like(dy) : Tensor();
  using O = balora_binary_backward;
  launch<O>(op, &KernelTable::binary_backward,
            {{&O::dy, dy},
             {&O::a, broadcast_view(a, dy.shape())},
             {&O::b, broadcast_view(b, dy.shape())}},
            {{&O::da, da}, {&O::db, db}}, {.op = code});
  if (da.defined()) sink.add(0, sum_to_shape(da, a.shape()));
  if (db.defined()) sink.add(1, sum_to_shape(db, b.shape()));
}

Tensor apply(const BinaryRow& row, const Tensor& a, const Tensor& b) {
  check_pair(row.name, a, b);
  if (a.dtype() == DType::kU8 || (!row.whole_numbers && !is_float(a.dtype()))) {
    throw ArgumentError(concat(row.name, ": ", dtype_name(a.dtype()), " tensors have no ", row.name,
                               "; cast them first"));
  }
  const Shape shape = broadcast_shape(row.name, a.shape(), b.shape());
  Tensor y = run(row.name, a, b, shape, row.code);
  const bool linear = row.code == BALORA_ADD || row.code == BALORA_SUB;
  record(
      row.name, {a, b}, {y},
      [name = row.name, code = row.code, linear, sa = linear ? Saved() : Saved(a),
       sb = linear ? Saved() : Saved(b), a_shape = a.shape(),
       b_shape = b.shape()](std::span<const Tensor> dy, GradSink& sink) {
        if (linear || code == BALORA_MUL) {
          linear_backward(code, dy[0], sa, sb, a_shape, b_shape, sink);
        } else {
          curved_backward(name, code, dy[0], sa.get(), sb.get(), sink);
        }
      },
      linear ? Gradient::kAnyFloat : Gradient::kOfOutput);
  return y;
}

}  // namespace

Tensor binary(const Tensor& a, const Tensor& b, const std::string& name) {
  for (const BinaryRow& row : kBinary) {
    if (name == row.name) return apply(row, a, b);
  }
  throw ArgumentError("binary: there is no function \"" + name + "\"");
}

Tensor compare(const Tensor& a, const Tensor& b, const std::string& name) {
  for (const CompareRow& row : kCompare) {
    if (name != row.name) continue;
    check_pair(row.name, a, b);
    const Shape shape = broadcast_shape(row.name, a.shape(), b.shape());
    Tensor y = Tensor::empty(a.engine(), shape, DType::kU8);
    using O = balora_compare;
    launch<O>(row.name, &KernelTable::compare,
              {{&O::a, broadcast_view(a, shape)}, {&O::b, broadcast_view(b, shape)}}, {{&O::y, y}},
              {.op = row.code});
    return y;
  }
  throw ArgumentError("compare: there is no comparison \"" + name + "\"");
}

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  check_dtype("where", "condition", condition, DType::kU8);
  check_pair("where", a, b);
  check_same_engine("where", condition, a);
  const Shape shape =
      broadcast_shape("where", condition.shape(), broadcast_shape("where", a.shape(), b.shape()));
  Tensor y = Tensor::empty(a.engine(), shape, a.dtype());
  const Tensor choose = broadcast_view(condition, shape);
  using O = balora_where;
  launch<O>("where", &KernelTable::where,
            {{&O::condition, choose},
             {&O::a, broadcast_view(a, shape)},
             {&O::b, broadcast_view(b, shape)}},
            {{&O::y, y}});
  record("where", {a, b}, {y},
         [choose = Saved(choose), a_shape = a.shape(), b_shape = b.shape()](
             std::span<const Tensor> dy, GradSink& sink) {
           for (size_t side = 0; side < 2; ++side) {
             if (!sink.wants(side)) continue;
             const Tensor g = empty_like(dy[0]);
             const Tensor from_a = side == 0 ? dy[0] : Tensor(),
                          from_b = side == 0 ? Tensor() : dy[0];
             using O = balora_where;
             launch<O>("where", &KernelTable::where,
                       {{&O::condition, choose.get()}, {&O::a, from_a}, {&O::b, from_b}},
                       {{&O::y, g}});
             sink.add(side, sum_to_shape(g, side == 0 ? a_shape : b_shape));
           }
         });
  return y;
}

Tensor is_finite(const Tensor& x) {
  check_float("is_finite", "x", x);
  Tensor y = Tensor::empty(x.engine(), x.shape(), DType::kU8);
  using O = balora_is_finite;
  launch<O>("is_finite", &KernelTable::is_finite, {{&O::x, contiguous(x.detach())}}, {{&O::y, y}});
  return y;
}

Tensor all_finite(const std::vector<Tensor>& tensors) {
  if (tensors.empty()) throw ArgumentError("all_finite: no tensor given");
  const Tensor total = grad_norm(tensors, "inf");  // NaN or infinite exactly when an element is
  return is_finite(total);
}

}  // namespace balora
