// Linears with low-rank parts (native/kernels/linear.h). The base and its parts meet in one f32 sum
// (f64 for f64) that is rounded once; the gradient of a shared input is one such sum over every
// linear.
// bf16: the parts' f32 masters go through the tensor cores as pairs of bf16 (low_rank.cuh), and the
// sum is linear_sum.cuh's, by the own kernel or by cuBLAS. For x (N,I), W (O,I), rank R: 2 N O I
// flops for the base, 4 N I R for U and 6 N O R for U B^T, R = 16 at I = O = 4096: 2 % more;
// traffic beyond the operands: 12 bytes an element of U. f32, f64 and f16: linear_wide.cu.
#include <vector>

#include "blas.cuh"
#include "linear.cuh"
#include "linear_sum.cuh"
#include "low_rank.cuh"

namespace balora::cuda {
namespace {

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

void forward_bf16(Context* ctx, const LinearInputs& in, const LinearGroup& group) {
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
void backward_parts(Context* ctx, const LinearInputs& in, const LinearGroup& group, int32_t linear,
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

void backward_bf16(Context* ctx, const LinearInputs& in, const LinearGroup& group) {
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

}  // namespace

int32_t linear_forward_kernel(Context* ctx, const View* x, const View* x_adapter,
                              const LinearOperands* linears, int32_t count,
                              const LowRankOperands* parts, int32_t part_count) {
  const LinearInputs in = {x, x_adapter, nullptr, nullptr};
  const LinearGroup group = {linears, count, parts, part_count};
  x->dtype == BALORA_BF16 ? forward_bf16(ctx, in, group) : linear_forward_wide(ctx, in, group);
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
  const LinearInputs in = {x, x_adapter, dx, dx_adapter};
  const LinearGroup group = {linears, count, parts, part_count};
  if (linears[0].weight->dtype == BALORA_BF16) {
    backward_bf16(ctx, in, group);
  } else {
    linear_backward_wide(ctx, in, group);
  }
  return 0;
}

}  // namespace balora::cuda
