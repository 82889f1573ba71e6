// The linears in f32, f64 and f16: products by gemm() into the result itself, which is as wide as
// its sum, or for f16 into f32 scratch that is rounded once. The f32 masters of low-rank parts meet
// f16 activations in f32.
#include <vector>

#include "kernels/shared/low_rank.h"
#include "linear/linear.cuh"
#include "linear/row_product.cuh"
#include "products/encoded.cuh"

namespace balora::cuda {
namespace {

// The sum of a result: the result itself where it is as wide as the sum, else scratch.
struct WideSum {
  WideSum(Context* ctx, const View& out, PanelScratch* scratch) : view(out), panels(scratch) {
    view.dtype = accumulator_of(out.dtype);
    if (view.dtype != out.dtype) view.data = workspace<float>(ctx, view_numel(out));
  }
  void add(Context* ctx, double alpha, const GemmOperand& a, const GemmOperand& b, int64_t k) {
    const auto product = by_rows ? &row_product : &gemm;
    product(ctx, {view.shape[0], view.shape[1], k}, alpha, a, b, beta, result(view));
    beta = 1;
  }
  // A weight's product: x W^T where it is transposed, else x W. One in blocks is decoded by panels,
  // each for a slice of the result's columns.
  void add_weight(Context* ctx, const View& x, const View& weight, bool transposed) {
    const int64_t k = x.shape[1];
    if (!weight.encoding) return add(ctx, 1, operand(x), operand(weight, transposed), k);
    const auto product = by_rows ? &row_product : &gemm;
    const int64_t columns = view.shape[1], bytes = k * element_size(weight.dtype);
    const int64_t slice = slice_of(ctx, columns, bytes);
    void* const panel = panels->at_least(slice * bytes);
    for (int64_t first = 0; first < columns; first += slice) {
      const int64_t count = std::min(slice, columns - first);
      const PanelPlace place =
          transposed ? PanelPlace{first, count, 0, k} : PanelPlace{0, k, first, count};
      decode_panel(ctx, weight, place, {panel, weight.dtype, place.columns});
      product(ctx, {view.shape[0], count, k}, 1, operand(x),
              {panel, weight.dtype, place.columns, transposed}, beta,
              {offset_by(view.data, first, view.dtype), view.dtype, columns});
    }
    beta = 1;
  }
  View view;
  PanelScratch* panels;
  bool by_rows = false;
  double beta = 0;
};

// y = scale * sum + bias, rounded; `unscaled` is the sum, rounded. All but y may be null; the sum
// may be y.
template <typename T>
struct Finished {
  const Acc<T>* scale;
  const T* bias;
  T *unscaled, *y;
};
template <typename T>
__global__ void finish_sum(const Acc<T>* sum, Finished<T> out, int64_t n, int64_t cols) {
  for (int64_t at = thread_index(); at < n; at += thread_count()) {
    Acc<T> value = sum[at];
    if (out.unscaled) out.unscaled[at] = store<T>(value);
    if (out.scale) value *= out.scale[at % cols];
    out.y[at] = store<T>(out.bias ? value + load(out.bias[at % cols]) : value);
  }
}

// `linear` has the scale and bias that are applied to the sum before it is rounded to y.
void finish(Context* ctx, const WideSum& sum, const View& y, const LinearOperands& linear = {}) {
  const int64_t n = view_numel(y);
  if (n == 0) return;
  if (sum.beta == 0) fill_zero(ctx, sum.view);
  if (sum.view.dtype == y.dtype && !linear.bias && !linear.output_scale) return;
  dispatch_float(y.dtype, [&]<typename T>() {
    const Finished<T> out = {data_of<Acc<T>>(linear.output_scale), data_of<T>(linear.bias),
                             data_of<T>(linear.unscaled), data_of<T>(&y)};
    launch(ctx, "linear", elements(n), finish_sum<T>, data_of<Acc<T>>(&sum.view), out, n,
           y.shape[1]);
  });
}

// (N,R) in the factors' type: x a^T, or scale dy b.
View projected(Context* ctx, double scale, const View& x, const GemmOperand& factor,
               const View& shape, bool by_rows = false) {
  const auto product = by_rows ? &row_product : &gemm;
  product(ctx, {shape.shape[0], shape.shape[1], x.shape[1]}, scale, operand(x), factor, 0,
          result(shape));
  return shape;
}
View scratch(Context* ctx, int64_t rows, const View& b) {
  View view = b;  // (O,R)
  view.shape[0] = rows;
  view.data = workspace<char>(ctx, view_numel(view) * element_size(view.dtype));
  return view;
}

}  // namespace

void linear_forward_wide(Context* ctx, const LinearInputs& in, const LinearGroup& group,
                         bool by_rows) {
  PanelScratch panels(ctx);
  for (int32_t i = 0; i < group.count; ++i) {
    const View &weight = dense_or_encoded(group.linears[i].weight), &y = *group.linears[i].y;
    WideSum sum(ctx, y, &panels);
    sum.by_rows = by_rows;
    for (const LowRankProduct& part : products_of(parts_of(group.linears[i]))) {
      const View u = projected(ctx, 1, *in.adapted(), operand(*part.a, true),
                               part.u ? *part.u : scratch(ctx, y.shape[0], *part.b), by_rows);
      sum.add(ctx, part.scale, operand(u), operand(*part.b, true), part.b->shape[1]);
    }
    if (const View* change = group.linears[i].weight_change) {
      sum.add(ctx, 1, operand(*in.adapted()), operand(*change, true), change->shape[1]);
    }
    // Last, so that parts which cancel leave the base alone to the last bit.
    sum.add_weight(ctx, *in.x, weight, true);
    finish(ctx, sum, y, group.linears[i]);
  }
}

void linear_backward_wide(Context* ctx, const LinearInputs& in, const LinearGroup& group) {
  const View *adapted = in.adapted_gradient(), *dx = in.dx;
  PanelScratch panels(ctx);
  std::vector<WideSum> sums;  // of dx and of the low-rank part where that is another
  if (dx) sums.emplace_back(ctx, *dx, &panels);
  if (in.x_adapter && adapted) sums.emplace_back(ctx, *adapted, &panels);
  for (int32_t i = 0; i < group.count; ++i) {
    const View* dy = group.linears[i].y;
    if (!dy) continue;
    const int64_t n = dy->shape[0];
    for (const LowRankProduct& part : products_of(parts_of(group.linears[i]))) {
      if (part.db) {
        gemm(ctx, {part.db->shape[0], part.db->shape[1], n}, part.scale, operand(*dy, true),
             operand(*part.u), 0, result(*part.db));
      }
      if (!part.da && !adapted) continue;
      const View du = projected(ctx, part.scale, *dy, operand(*part.b), scratch(ctx, n, *part.b));
      if (part.da) {
        gemm(ctx, {part.da->shape[0], part.da->shape[1], n}, 1, operand(du, true),
             operand(*in.adapted()), 0, result(*part.da));
      }
      if (adapted) sums.back().add(ctx, 1, operand(du), operand(*part.a), du.shape[1]);
    }
  }
  for (int32_t i = 0; dx && i < group.count; ++i) {
    const View* dy = group.linears[i].y;
    if (!dy) continue;
    sums.front().add_weight(ctx, *dy, dense_or_encoded(group.linears[i].weight), false);
  }
  if (dx) finish(ctx, sums.front(), *dx);
  if (in.x_adapter && adapted) finish(ctx, sums.back(), *adapted);
}

}  // namespace balora::cuda
