// Linears with low-rank parts (native/kernels/linear.h). The base and its parts meet in one f32 sum
// (f64 for f64) that is rounded once; the gradient of a shared input is one such sum over every
// linear.
// bf16: the parts' f32 masters go through the tensor cores as pairs of bf16 (low_rank.cuh), and the
// sum is linear_sum.cuh's, by the own kernel or by cuBLAS. For x (N,I), W (O,I), rank R: 2 N O I
// flops for the base, 4 N I R for U and 6 N O R for U B^T, R = 16 at I = O = 4096: 2 % more;
// traffic beyond the operands: 12 bytes an element of U. f32, f64, f16: products by gemm() into the
// result itself, or for f16 into f32 scratch.
#include <vector>

#include "blas.cuh"
#include "linear_sum.cuh"
#include "low_rank.cuh"

namespace balora::cuda {
namespace {

struct Group {
  const LinearOperands* linears;
  int32_t count;
  const LowRankOperands* parts;
  int32_t part_count;
};

struct Inputs {
  const View *x, *x_adapter, *dx, *dx_adapter;

  const View* adapted() const { return x_adapter ? x_adapter : x; }
  const View* adapted_gradient() const { return x_adapter ? dx_adapter : dx; }
};

void fill_zero(Context* ctx, const View& view) {
  const auto bytes = static_cast<size_t>(view_numel(view) * element_size(view.dtype));
  if (bytes) check(cudaMemsetAsync(view.data, 0, bytes, stream_of(ctx)), "linear");
}

GemmOperand operand(const View& view, bool transposed = false) {
  return {view.data, view.dtype, view.shape[1], transposed};
}
GemmResult result(const View& view) {
  return {view.data, view.dtype, view.shape[1]};
}

// ---- bf16 -------------------------------------------------------------------------------------

// Pairs of every panel side by side: a panel's begin at its offset in rows of `stride`.
struct PanelPairs {
  std::vector<Panel> panels;
  std::vector<int64_t> offsets;
  int64_t stride = 0;

  explicit PanelPairs(std::vector<Panel> of) : panels(std::move(of)) {
    for (const Panel& panel : panels) {
      offsets.push_back(stride);
      stride += 2 * panel.width;
    }
  }
  Pairs at(size_t i, bf16* data) const { return {data + offsets[i], stride, panels[i].width}; }
};

// U of every panel as pairs, and the parts' u in f32: one product for all linears, whose inner
// extent is x read once.
bf16* project_input(Context* ctx, const View& x, const PanelPairs& all) {
  const int64_t n = x.shape[0], in = x.shape[1];
  bf16* a = workspace<bf16>(ctx, all.stride * in);
  float* products = workspace<float>(ctx, n * all.stride);
  bf16* u = workspace<bf16>(ctx, n * all.stride);
  for (size_t i = 0; i < all.panels.size(); ++i) {
    split_a(ctx, all.panels[i], a + all.offsets[i] * in);
  }
  gemm(ctx, {n, all.stride, in}, 1, operand(x), {a, BALORA_BF16, in, true}, 0,
       {products, BALORA_F32, all.stride});
  for (size_t i = 0; i < all.panels.size(); ++i) {
    join_products(ctx, all.panels[i], n, products + all.offsets[i], all.stride, all.at(i, u), true);
  }
  return u;
}

void forward_bf16(Context* ctx, const Inputs& in, const Group& group) {
  std::vector<Panel> panels;
  for (int32_t i = 0; i < group.count; ++i) {
    const std::vector<Panel> own = panels_of(group.parts, group.part_count, i, true);
    panels.insert(panels.end(), own.begin(), own.end());
  }
  const PanelPairs all(std::move(panels));
  bf16* u = all.stride ? project_input(ctx, *in.adapted(), all) : nullptr;
  for (int32_t i = 0; i < group.count; ++i) {
    const View &weight = *group.linears[i].weight, &y = *group.linears[i].y;
    std::vector<SumTerm> low_rank;
    for (size_t p = 0; p < all.panels.size(); ++p) {
      const Panel& panel = all.panels[p];
      if (panel.part[0]->linear != i) continue;
      const Pairs b = {workspace<bf16>(ctx, y.shape[1] * 2 * panel.width), 2 * panel.width,
                       panel.width};
      split_b(ctx, panel, b);
      add_pair_terms(low_rank, all.at(p, u), b.hi(), b.lo(), b.stride, true);
    }
    const SumTerm base = {data_of<bf16>(in.x),
                          data_of<bf16>(&weight),
                          in.x->shape[1],
                          weight.shape[1],
                          static_cast<int32_t>(weight.shape[1]),
                          true};
    sum_terms(ctx, y.shape[0], y.shape[1], low_rank, {base}, data_of<bf16>(group.linears[i].bias),
              data_of<bf16>(&y));
  }
}

// dU = scale dY B of a linear's parts as pairs.
bf16* project_gradient(Context* ctx, const View& dy, const PanelPairs& all) {
  const int64_t n = dy.shape[0], out = dy.shape[1];
  bf16* b = workspace<bf16>(ctx, out * all.stride);
  float* products = workspace<float>(ctx, n * all.stride);
  bf16* du = workspace<bf16>(ctx, n * all.stride);
  for (size_t i = 0; i < all.panels.size(); ++i) split_b(ctx, all.panels[i], all.at(i, b));
  gemm(ctx, {n, all.stride, out}, 1, operand(dy), {b, BALORA_BF16, all.stride}, 0,
       {products, BALORA_F32, all.stride});
  for (size_t i = 0; i < all.panels.size(); ++i) {
    join_products(ctx, all.panels[i], n, products + all.offsets[i], all.stride, all.at(i, du),
                  false);
  }
  return du;
}

// out (M,N) f32 = scale a^T b with one side as pairs: left (K,M), or right (K,N).
void contract_pairs(Context* ctx, const Pairs& pairs, const View& x, double scale, const View& out,
                    bool pairs_right) {
  const int64_t n = x.shape[0];
  double beta = 0;
  for (const bf16* half : {pairs.hi(), pairs.lo()}) {
    const GemmOperand thin = {half, BALORA_BF16, pairs.stride, !pairs_right};
    const GemmOperand wide = operand(x, pairs_right);
    gemm(ctx, {out.shape[0], out.shape[1], n}, scale, pairs_right ? wide : thin,
         pairs_right ? thin : wide, beta, result(out));
    beta = 1;
  }
}

void write_db(Context* ctx, const View& dy, const LowRankOperands& part) {
  const int64_t width = ceil_div(part.u->shape[1], 8) * 8;
  const Pairs u = {workspace<bf16>(ctx, part.u->shape[0] * 2 * width), 2 * width, width};
  split_u(ctx, *part.u, u);
  contract_pairs(ctx, u, dy, part.scale, *part.db, true);
}

// da, db of a linear's parts; its terms of the input's gradient go to `low_rank`.
void backward_parts(Context* ctx, const Inputs& in, const Group& group, int32_t linear,
                    std::vector<SumTerm>& low_rank) {
  const View& dy = *group.linears[linear].y;
  std::vector<Panel> wanted;
  for (const Panel& panel : panels_of(group.parts, group.part_count, linear, false)) {
    if (panel.part[0]->db) write_db(ctx, dy, *panel.part[0]);
    if (panel.part[0]->da || in.adapted_gradient()) wanted.push_back(panel);
  }
  if (wanted.empty()) return;
  const PanelPairs all(std::move(wanted));
  bf16* du = project_gradient(ctx, dy, all);
  for (size_t i = 0; i < all.panels.size(); ++i) {
    const Panel& panel = all.panels[i];
    const LowRankOperands& part = *panel.part[0];
    if (part.da) contract_pairs(ctx, all.at(i, du), *in.adapted(), 1, *part.da, false);
    if (!in.adapted_gradient()) continue;
    const int64_t width = part.a->shape[1];
    bf16* a = workspace<bf16>(ctx, 2 * panel.width * width);
    split_a(ctx, panel, a);
    add_pair_terms(low_rank, all.at(i, du), a, a + panel.width * width, width, false);
  }
}

void backward_bf16(Context* ctx, const Inputs& in, const Group& group) {
  std::vector<SumTerm> low_rank, base;
  for (int32_t i = 0; i < group.count; ++i) {
    const View* dy = group.linears[i].y;
    if (!dy) continue;
    backward_parts(ctx, in, group, i, low_rank);
    const View& weight = *group.linears[i].weight;
    base.push_back({data_of<bf16>(dy), data_of<bf16>(&weight), dy->shape[1], weight.shape[1],
                    static_cast<int32_t>(dy->shape[1]), false});
  }
  const auto sum = [&](const View& out, const std::vector<SumTerm>& thin,
                       const std::vector<SumTerm>& products) {
    sum_terms(ctx, out.shape[0], out.shape[1], thin, products, nullptr, data_of<bf16>(&out));
  };
  if (in.dx) sum(*in.dx, in.x_adapter ? std::vector<SumTerm>() : low_rank, base);
  if (in.x_adapter && in.dx_adapter) sum(*in.dx_adapter, low_rank, {});
}

// ---- f32, f64, f16 ----------------------------------------------------------------------------

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

void forward_wide(Context* ctx, const Inputs& in, const Group& group) {
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

View gradient_of_u(Context* ctx, const View& dy, const LowRankOperands& part) {
  View du = dy;
  du.shape[1] = part.b->shape[1];
  du.dtype = part.b->dtype;
  du.data = workspace<char>(ctx, view_numel(du) * element_size(du.dtype));
  gemm(ctx, {du.shape[0], du.shape[1], dy.shape[1]}, part.scale, operand(dy), operand(*part.b), 0,
       result(du));
  return du;
}

void backward_wide(Context* ctx, const Inputs& in, const Group& group) {
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

// ---- Gradients of weights ---------------------------------------------------------------------

constexpr int kSumColumns = 32, kSumRows = 8;

// A block sums 32 columns; warp w adds rows w, w + 8, ..., and the eight sums are added in order.
template <typename T>
__global__ void sum_rows(const T* dy, int64_t rows, int64_t cols, Acc<T>* out) {
  BALORA_SHARED(Acc<T>, partial, kSumRows * kSumColumns);
  const int lane = threadIdx.x % kSumColumns, part = threadIdx.x / kSumColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + lane;
  Acc<T> sum = 0;
  for (int64_t i = part; i < rows && column < cols; i += kSumRows) {
    sum += load(dy[i * cols + column]);
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (part != 0 || column >= cols) return;
  for (int p = 1; p < kSumRows; ++p) sum += partial[p * kSumColumns + lane];
  out[column] = sum;
}

}  // namespace

int32_t linear_forward_kernel(Context* ctx, const View* x, const View* x_adapter,
                              const LinearOperands* linears, int32_t count,
                              const LowRankOperands* parts, int32_t part_count) {
  const Inputs in = {x, x_adapter, nullptr, nullptr};
  const Group group = {linears, count, parts, part_count};
  x->dtype == BALORA_BF16 ? forward_bf16(ctx, in, group) : forward_wide(ctx, in, group);
  return 0;
}

int32_t linear_backward_kernel(Context* ctx, const View* x, const View* x_adapter, const View* dx,
                               const View* dx_adapter, const LinearOperands* linears, int32_t count,
                               const LowRankOperands* parts, int32_t part_count) {
  for (int32_t p = 0; p < part_count; ++p) {
    if (linears[parts[p].linear].y) continue;
    if (parts[p].da) fill_zero(ctx, *parts[p].da);
    if (parts[p].db) fill_zero(ctx, *parts[p].db);
  }
  const Inputs in = {x, x_adapter, dx, dx_adapter};
  const Group group = {linears, count, parts, part_count};
  if (linears[0].weight->dtype == BALORA_BF16) {
    backward_bf16(ctx, in, group);
  } else {
    backward_wide(ctx, in, group);
  }
  return 0;
}

int32_t linear_weight_backward_kernel(Context* ctx, const View* dy, const View* x,
                                      const View* dweight, const View* dbias) {
  const int64_t rows = dy->shape[0], out = dy->shape[1];
  if (dweight) {
    gemm(ctx, {out, x->shape[1], rows}, 1, operand(*dy, true), operand(*x), 0, result(*dweight));
  }
  if (dbias && out > 0) {
    Grid grid{dim3(static_cast<unsigned>(ceil_div(out, kSumColumns))), dim3(256)};
    dispatch_float(dy->dtype, [&]<typename T>() {
      launch(ctx, "linear_weight_backward", grid, sum_rows<T>, data_of<T>(dy), rows, out,
             data_of<Acc<T>>(dbias));
    });
  }
  return 0;
}

}  // namespace balora::cuda
