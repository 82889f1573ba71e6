// The linears in f32, f64 and f16: products by gemm() into the result itself, which is as wide as
// its sum, or for f16 into f32 scratch that is rounded once. The f32 masters of low-rank parts meet
// f16 activations in f32.
#include <vector>

#include "linear/linear.cuh"

namespace balora::cuda {
namespace {

// The sum of a result: the result itself where it is as wide as the sum, else scratch.
struct WideSum {
  WideSum(Context* ctx, const View& out) : view(out) {
    view.dtype = accumulator_of(out.dtype);
    if (view.dtype != out.dtype) view.data = workspace<float>(ctx, view_numel(out));
  }
  void add(Context* ctx, double alpha, const GemmOperand& a, const GemmOperand& b, int64_t k) {
    gemm(ctx, {view.shape[0], view.shape[1], k}, alpha, a, b, beta, result(view));
    beta = 1;
  }
  View view;
  double beta = 0;
};

// y = sum + bias, rounded.
template <typename T>
__global__ void finish_sum(const Acc<T>* sum, const T* bias, T* y, int64_t n, int64_t cols) {
  for (int64_t at = thread_index(); at < n; at += thread_count()) {
    y[at] = store<T>(bias ? sum[at] + load(bias[at % cols]) : sum[at]);
  }
}

void finish(Context* ctx, const WideSum& sum, const View* bias, const View& y) {
  const int64_t n = view_numel(y);
  if (n == 0) return;
  if (sum.beta == 0) fill_zero(ctx, sum.view);
  if (sum.view.dtype == y.dtype && !bias) return;
  dispatch_float(y.dtype, [&]<typename T>() {
    launch(ctx, "linear", elements(n), finish_sum<T>, data_of<Acc<T>>(&sum.view), data_of<T>(bias),
           data_of<T>(&y), n, y.shape[1]);
  });
}

View gradient_of_u(Context* ctx, const View& dy, const LowRankOperands& part) {
  View du = dy;
  du.shape[1] = part.b->shape[1];
  du.dtype = part.b->dtype;
  du.data = workspace<char>(ctx, view_numel(du) * element_size(du.dtype));
  gemm(ctx, {du.shape[0], du.shape[1], dy.shape[1]}, part.scale, operand(dy), operand(*part.b), 0,
       result(du));
  return du;
}

}  // namespace

void linear_forward_wide(Context* ctx, const LinearInputs& in, const LinearGroup& group) {
  for (int32_t p = 0; p < group.part_count; ++p) {
    const LowRankOperands& part = group.parts[p];
    gemm(ctx, {part.u->shape[0], part.u->shape[1], part.a->shape[1]}, 1, operand(*in.adapted()),
         operand(*part.a, true), 0, result(*part.u));
  }
  for (int32_t i = 0; i < group.count; ++i) {
    const View &weight = *group.linears[i].weight, &y = *group.linears[i].y;
    WideSum sum(ctx, y);
    for (int32_t p = 0; p < group.part_count; ++p) {
      const LowRankOperands& part = group.parts[p];
      if (part.linear != i) continue;
      sum.add(ctx, part.scale, operand(*part.u), operand(*part.b, true), part.b->shape[1]);
    }
    // Last, so that parts which cancel leave the base alone to the last bit.
    sum.add(ctx, 1, operand(*in.x), operand(weight, true), weight.shape[1]);
    finish(ctx, sum, group.linears[i].bias, y);
  }
}

void linear_backward_wide(Context* ctx, const LinearInputs& in, const LinearGroup& group) {
  const View *adapted = in.adapted_gradient(), *dx = in.dx;
  std::vector<WideSum> sums;  // of dx and of the low-rank part where that is another
  if (dx) sums.emplace_back(ctx, *dx);
  if (in.x_adapter && adapted) sums.emplace_back(ctx, *adapted);
  for (int32_t p = 0; p < group.part_count; ++p) {
    const LowRankOperands& part = group.parts[p];
    const View* dy = group.linears[part.linear].y;
    if (!dy) continue;
    const int64_t n = dy->shape[0];
    if (part.db) {
      gemm(ctx, {part.db->shape[0], part.db->shape[1], n}, part.scale, operand(*dy, true),
           operand(*part.u), 0, result(*part.db));
    }
    if (!part.da && !adapted) continue;
    const View du = gradient_of_u(ctx, *dy, part);
    if (part.da) {
      gemm(ctx, {part.da->shape[0], part.da->shape[1], n}, 1, operand(du, true),
           operand(*in.adapted()), 0, result(*part.da));
    }
    if (adapted) sums.back().add(ctx, 1, operand(du), operand(*part.a), du.shape[1]);
  }
  for (int32_t i = 0; dx && i < group.count; ++i) {
    const View* dy = group.linears[i].y;
    if (!dy) continue;
    sums.front().add(ctx, 1, operand(*dy), operand(*group.linears[i].weight), dy->shape[1]);
  }
  if (dx) finish(ctx, sums.front(), nullptr, *dx);
  if (in.x_adapter && adapted) finish(ctx, sums.back(), nullptr, *adapted);
}

}  // namespace balora::cuda
