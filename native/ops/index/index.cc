// Reading through indices: embedding and selected rows (one kernel), gather and scatter-add along
// an axis. An index out of range is found by the kernel and surfaces at the next sync, with its
// value and position.
#include "engine/launch.h"
#include "ops/axes.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

void check_indices(const char* op, const char* name, const Tensor& t) {
  check_defined(op, name, t);
  if (t.dtype() == DType::kI32 || t.dtype() == DType::kI64) return;
  throw ArgumentError(concat(op, ": ", name, " must be i32 or i64, got ", dtype_name(t.dtype())));
}

// x as contiguous (A,R,C) around an axis, off the tape.
Tensor around(const Tensor& x, int axis) {
  int64_t before = 1, after = 1;
  for (int i = 0; i < axis; ++i) before *= x.dim(i);
  for (int i = axis + 1; i < x.ndim(); ++i) after *= x.dim(i);
  return contiguous(x.detach()).view({before, x.dim(axis), after});
}

void check_index_shape(const char* op, const Tensor& x, const Tensor& index, int axis) {
  check_indices(op, "index", index);
  check_same_engine(op, x, index);
  Shape expected = x.shape();
  if (index.ndim() == x.ndim()) expected[axis] = index.dim(axis);
  if (!(index.shape() == expected)) {
    throw ArgumentError(concat(op, ": index ", index.shape().to_string(), " must agree with ",
                               x.shape().to_string(), " in every axis but ", axis));
  }
}

// y (A,R,C) = base (zero where undefined) + the source (A,K,C) scattered.
Tensor scattered(const Tensor& base, const Tensor& index, const Tensor& source,
                 const Shape& shape) {
  Tensor y = Tensor::empty(source.engine(), shape, source.dtype());
  using O = balora_scatter_add;
  launch<O>("scatter_add", &KernelTable::scatter_add,
            {{&O::base, base}, {&O::index, index}, {&O::source, source}}, {{&O::y, y}});
  return y;
}

Tensor gathered(const char* op, const Tensor& x, const Tensor& index) {
  Tensor y = Tensor::empty(x.engine(), index.shape(), x.dtype());
  using O = balora_gather;
  launch<O>(op, &KernelTable::gather, {{&O::x, x}, {&O::index, index}}, {{&O::y, y}});
  return y;
}

Tensor rows_of(const char* op, const char* name, const Tensor& table, const char* ids_name,
               const Tensor& ids) {
  check_defined(op, name, table);
  if (table.ndim() < 1)
    throw ArgumentError(concat(op, ": ", name, " needs at least one dimension"));
  check_indices(op, ids_name, ids);
  check_same_engine(op, table, ids);
  Shape shape = ids.shape();
  for (int i = 1; i < table.ndim(); ++i) shape.push_back(table.dim(i));
  const int64_t rows = table.dim(0), columns = rows > 0 ? table.numel() / rows : 0;
  if (rows == 0 && ids.numel() > 0) throw ArgumentError(concat(op, ": ", name, " has no rows"));
  const Shape flat{rows, columns};
  const Tensor flat_ids = contiguous(ids.detach()).view({ids.numel()});
  Tensor y = Tensor::empty(table.engine(), shape, table.dtype());
  using O = balora_select_rows;
  launch<O>(op, &KernelTable::select_rows,
            {{&O::table, contiguous(table.detach()).view(flat).as_encoded()}, {&O::ids, flat_ids}},
            {{&O::y, y.view({ids.numel(), columns})}});
  // A leaf takes the sum as it was formed, in f32; anything else in its own dtype.
  const DType grad_type = table.is_leaf() ? accumulator_dtype(table.dtype()) : table.dtype();
  record(op, {table}, {y},
         [op, flat, grad_type, ids = Saved(flat_ids), full_shape = table.shape()](
             std::span<const Tensor> dy, GradSink& sink) {
           const Tensor dx = Tensor::empty(dy[0].engine(), flat, grad_type);
           const Tensor rows = ids.get();
           using O = balora_select_rows_backward;
           launch<O>(op, &KernelTable::select_rows_backward,
                     {{&O::dy, contiguous(dy[0]).view({rows.numel(), flat[1]})}, {&O::ids, rows}},
                     {{&O::dx, dx}});
           sink.add(0, dx.view(full_shape));
         });
  return y;
}

}  // namespace

Tensor embedding(const Tensor& weight, const Tensor& ids) {
  check_float("embedding", "weight", weight);
  check_ndim("embedding", "weight (V,C)", weight, 2);
  return rows_of("embedding", "weight", weight, "ids", ids);
}

Tensor index_select(const Tensor& x, const Tensor& rows) {
  check_ndim("index_select", "rows (M)", rows, 1);
  return rows_of("index_select", "x", x, "rows", rows);
}

Tensor gather(const Tensor& x, const Tensor& index, int64_t axis) {
  check_defined("gather", "x", x);
  const int a = checked_axis("gather", x, axis);
  check_index_shape("gather", x, index, a);
  const Tensor x3 = around(x, a), index3 = around(index, a);
  Tensor y = gathered("gather", x3, index3).view(index.shape());
  record("gather", {x}, {y},
         [index3 = Saved(index3), rows = x3.shape(), shape = x.shape()](std::span<const Tensor> dy,
                                                                        GradSink& sink) {
           const Tensor at = index3.get();
           const Tensor g = contiguous(dy[0]).view(at.shape());
           sink.add(0, scattered(Tensor(), at, g, rows).view(shape));
         });
  return y;
}

Tensor scatter_add(const Tensor& x, const Tensor& index, const Tensor& source, int64_t axis) {
  check_float("scatter_add", "x", x);
  const int a = checked_axis("scatter_add", x, axis);
  check_index_shape("scatter_add", x, index, a);
  check_shape("scatter_add", "source", source, index.shape(), "the shape of index");
  check_dtype("scatter_add", "source", source, x.dtype());
  const Tensor x3 = around(x, a), index3 = around(index, a);
  Tensor y = scattered(x3, index3, around(source, a), x3.shape()).view(x.shape());
  record("scatter_add", {x, source}, {y},
         [index3 = Saved(index3), rows = x3.shape(), shape = source.shape()](
             std::span<const Tensor> dy, GradSink& sink) {
           sink.add(0, dy[0]);
           if (!sink.wants(1)) return;
           const Tensor g = contiguous(dy[0]).view(rows);
           sink.add(1, gathered("scatter_add", g, index3.get()).view(shape));
         });
  return y;
}

std::tuple<Tensor, Tensor> top_k(const Tensor& x, int64_t k) {
  check_float("top_k", "x", x);
  if (x.ndim() < 1) throw ArgumentError("top_k: x needs at least one dimension");
  const int64_t width = x.dim(-1);
  if (k < 0 || k > width) {
    throw ArgumentError(
        concat("top_k: k must be in [0,", width, "] for x ", x.shape().to_string(), ", got ", k));
  }
  Shape shape = x.shape();
  shape[x.ndim() - 1] = k;
  const int64_t rows = width > 0 ? x.numel() / width : 0;
  const Tensor values = Tensor::empty(x.engine(), shape, x.dtype());
  const Tensor columns = Tensor::empty(x.engine(), shape, DType::kI32);
  const Shape flat{rows, k};
  using O = balora_topk;
  launch<O>("top_k", &KernelTable::topk, {{&O::x, contiguous(x.detach()).view({rows, width})}},
            {{&O::values, values.view(flat)}, {&O::columns, columns.view(flat)}});
  record("top_k", {x}, {values},
         [at = Saved(columns), rows, width, k, full_shape = x.shape()](std::span<const Tensor> dy,
                                                                       GradSink& sink) {
           const Shape middle{rows, k, 1};
           const Tensor g = contiguous(dy[0]).view(middle);
           sink.add(
               0, scattered(Tensor(), at.get().view(middle), g, {rows, width, 1}).view(full_shape));
         });
  return {values, columns};
}

}  // namespace balora
