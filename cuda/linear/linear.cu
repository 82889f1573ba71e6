// Linears with low-rank parts (native/kernels/operands/linear.h). The base and its parts meet in
// one f32 sum (f64 for f64) that is rounded once, but for a pair's change beside cuBLAS
// (linear_sum.cu); the gradient of a shared input is one such sum over every linear. bf16: the
// parts' f32 masters go through the tensor cores as bf16 matrices (low_rank.cuh), and the sum is
// linear_sum.cuh's, by the own kernel or by cuBLAS. Flops beside the base's 2 N O I, for x (N,I), W
// (O,I), rank R:
//   a PiSSA pair: 4 N R (I + O) forward (U, then its product with B)
//                 6 N R (I + O) backward (dU, its product with A, dA, dB)
//   other parts, each: 2 N R (2 I + 3 O) forward, 2 N R (5 I + 4 O) backward
// docs/gpu-performance.md has the arithmetic for a layer. f32, f64 and f16: linear_wide.cu.
#include <vector>

#include "linear/linear.cuh"
#include "linear/linear_sum.cuh"
#include "linear/low_rank.cuh"
#include "runtime/blas.cuh"

namespace balora::cuda {
namespace {

// Halves of every panel side by side: a panel's begin at its offset in rows of `stride`.
struct PanelHalves {
  std::vector<Panel> panels;
  std::vector<int64_t> offsets;
  int64_t stride = 0;

  explicit PanelHalves(std::vector<Panel> of) : panels(std::move(of)) {
    for (const Panel& panel : panels) {
      offsets.push_back(stride);
      stride += 2 * panel.width;
    }
  }
  Halves at(size_t i, bf16* data) const { return {data + offsets[i], stride, panels[i].width}; }
};

// The panels' factors in bf16: A of all one below the other, B of each.
struct PanelFactors {
  bf16* a = nullptr;
  std::vector<Halves> b;
};
PanelFactors factors_of(Context* ctx, const PanelHalves& all, int64_t in) {
  PanelFactors factors;
  factors.a = workspace<bf16>(ctx, all.stride * in);
  FactorSplitter splitter(ctx);
  for (size_t i = 0; i < all.panels.size(); ++i) {
    const Panel& panel = all.panels[i];
    const int64_t columns = 2 * panel.width;
    factors.b.push_back(
        {workspace<bf16>(ctx, panel.part[0]->b->shape[0] * columns), columns, panel.width});
    splitter.add_a(panel, factors.a + all.offsets[i] * in);
    splitter.add_b(panel, factors.b[i]);
  }
  splitter.run();
  return factors;
}

// U of every panel in halves, and the parts' u in f32: one product for all linears, whose inner
// extent is x read once.
bf16* project_input(Context* ctx, const View& x, const PanelHalves& all, const bf16* a,
                    bool by_rows, PanelScratch& panels) {
  const int64_t n = x.shape[0], in = x.shape[1];
  float* products = workspace<float>(ctx, n * all.stride);
  bf16* u = workspace<bf16>(ctx, n * all.stride);
  if (by_rows) {
    const SumTerm term = {.a = data_of<bf16>(&x),
                          .b = a,
                          .a_stride = in,
                          .b_stride = in,
                          .k = narrowed(in, "an inner extent of"),
                          .b_inner = true};
    sum_terms(ctx, {}, {term}, {.m = n, .n = all.stride, .wide = products, .by_rows = true},
              panels);
  } else {
    gemm(ctx, {n, all.stride, in}, 1, operand(x), {a, BALORA_BF16, in, true}, 0,
         {products, BALORA_F32, all.stride});
  }
  for (size_t i = 0; i < all.panels.size(); ++i) {
    join_products(ctx, all.panels[i], n, products + all.offsets[i], all.stride,
                  {all.at(i, u), true});
  }
  return u;
}

void forward_bf16(Context* ctx, const LinearInputs& in, const LinearGroup& group, bool by_rows) {
  std::vector<Panel> panels;
  for (int32_t i = 0; i < group.count; ++i) {
    const std::vector<Panel> own = panels_of(group.linears[i], i, true);
    panels.insert(panels.end(), own.begin(), own.end());
  }
  const PanelHalves all(std::move(panels));
  PanelFactors factors;
  PanelScratch decoded(ctx);
  bf16* u = nullptr;
  if (all.stride) {
    factors = factors_of(ctx, all, in.x->shape[1]);
    u = project_input(ctx, *in.adapted(), all, factors.a, by_rows, decoded);
  }
  for (int32_t i = 0; i < group.count; ++i) {
    const View &weight = dense_or_encoded(group.linears[i].weight), &y = *group.linears[i].y;
    std::vector<SumTerm> low_rank;
    for (size_t p = 0; u && p < all.panels.size(); ++p) {
      const Panel& panel = all.panels[p];
      if (panel.linear != i) continue;
      add_terms(low_rank, panel, all.at(p, u), factors.b[p].data, factors.b[p].stride, true);
    }
    const LinearOperands& linear = group.linears[i];
    std::vector<SumTerm> base;
    if (linear.weight_change) {
      base.push_back(weight_term(*in.adapted(), *linear.weight_change, true));
    }
    base.push_back(weight_term(*in.x, weight, true));
    sum_terms(ctx, low_rank, base,
              {.m = y.shape[0],
               .n = y.shape[1],
               .c = data_of<bf16>(&y),
               .bias = data_of<bf16>(linear.bias),
               .scale = data_of<float>(linear.output_scale),
               .unscaled = data_of<bf16>(linear.unscaled),
               .by_rows = by_rows},
              decoded);
  }
}

// dU = scale dY B of a linear's panels, in halves.
struct InputGradients {
  bf16* halves;
  std::vector<bf16*> sums;  // of a change with da: dU rounded once, (N, width); else null
};
InputGradients project_gradient(Context* ctx, const View& dy, const PanelHalves& all,
                                const bf16* b) {
  const int64_t n = dy.shape[0], out = dy.shape[1];
  float* products = workspace<float>(ctx, n * all.stride);
  InputGradients du = {workspace<bf16>(ctx, n * all.stride), {}};
  gemm(ctx, {n, all.stride, out}, 1, operand(dy), {b, BALORA_BF16, all.stride}, 0,
       {products, BALORA_F32, all.stride});
  for (size_t i = 0; i < all.panels.size(); ++i) {
    const Panel& panel = all.panels[i];
    const bool sum = panel.change && panel.part[0]->da;
    du.sums.push_back(sum ? workspace<bf16>(ctx, n * panel.width) : nullptr);
    join_products(ctx, panel, n, products + all.offsets[i], all.stride,
                  {all.at(i, du.halves), false, du.sums[i]});
  }
  return du;
}

// out (M,N) f32 = scale a^T b with one side thin: left (K,M), or right (K,N); of pairs both halves.
struct Thin {
  Halves halves;
  bool pairs, right;
};
void contract(Context* ctx, const Thin& thin, const View& x, double scale, const View& out) {
  const int64_t n = x.shape[0];
  const auto add = [&](const bf16* half, double beta) {
    const GemmOperand narrow = {half, BALORA_BF16, thin.halves.stride, !thin.right};
    const GemmOperand wide = operand(x, thin.right);
    gemm(ctx, {out.shape[0], out.shape[1], n}, scale, thin.right ? wide : narrow,
         thin.right ? narrow : wide, beta, result(out));
  };
  add(thin.halves.first(), 0);
  if (thin.pairs) add(thin.halves.second(), 1);
}

void write_db(Context* ctx, const View& dy, const LowRankOperands& part, bool pairs) {
  const int64_t width = ceil_div(part.u->shape[1], 8) * 8;
  const Halves u = {workspace<bf16>(ctx, part.u->shape[0] * 2 * width), 2 * width, width};
  split_u(ctx, *part.u, u);
  contract(ctx, {u, pairs, true}, dy, part.scale, *part.db);
}

// da, db of a linear's parts; its terms of the input's gradient go to `low_rank`. Only the first
// part of a panel has gradients.
void backward_parts(Context* ctx, const LinearInputs& in, const LinearGroup& group, int32_t linear,
                    std::vector<SumTerm>& low_rank) {
  const View& dy = *group.linears[linear].y;
  std::vector<Panel> wanted;
  for (const Panel& panel : panels_of(group.linears[linear], linear, false)) {
    if (panel.part[0]->db) write_db(ctx, dy, *panel.part[0], !panel.change);
    if (panel.part[0]->da || in.adapted_gradient()) wanted.push_back(panel);
  }
  if (wanted.empty()) return;
  const PanelHalves all(std::move(wanted));
  const int64_t width = all.panels[0].part[0]->a->shape[1];
  bf16* a = in.adapted_gradient() ? workspace<bf16>(ctx, all.stride * width) : nullptr;
  bf16* b = workspace<bf16>(ctx, dy.shape[1] * all.stride);
  FactorSplitter splitter(ctx);
  for (size_t i = 0; i < all.panels.size(); ++i) {
    splitter.add_b(all.panels[i], all.at(i, b));
    if (a) splitter.add_a(all.panels[i], a + all.offsets[i] * width);
  }
  splitter.run();
  const InputGradients du = project_gradient(ctx, dy, all, b);
  for (size_t i = 0; i < all.panels.size(); ++i) {
    const Panel& panel = all.panels[i];
    const Halves halves = all.at(i, du.halves);
    if (const View* da = panel.part[0]->da) {
      const Halves sum = {du.sums[i], panel.width, panel.width};
      contract(ctx, {panel.change ? sum : halves, !panel.change, false}, *in.adapted(), 1, *da);
    }
    if (a) add_terms(low_rank, panel, halves, a + all.offsets[i] * width, width, false);
  }
}

void backward_bf16(Context* ctx, const LinearInputs& in, const LinearGroup& group) {
  std::vector<SumTerm> low_rank, base;
  for (int32_t i = 0; i < group.count; ++i) {
    const View* dy = group.linears[i].y;
    if (!dy) continue;
    backward_parts(ctx, in, group, i, low_rank);
    base.push_back(weight_term(*dy, dense_or_encoded(group.linears[i].weight), false));
  }
  PanelScratch decoded(ctx);
  const auto sum = [&](const View& out, const std::vector<SumTerm>& thin,
                       const std::vector<SumTerm>& products) {
    sum_terms(ctx, thin, products, {out.shape[0], out.shape[1], data_of<bf16>(&out)}, decoded);
  };
  if (in.dx) sum(*in.dx, in.x_adapter ? std::vector<SumTerm>() : low_rank, base);
  if (in.x_adapter && in.dx_adapter) sum(*in.dx_adapter, low_rank, {});
}

}  // namespace

int32_t linear_forward_kernel(Context* ctx, const balora_linear_forward& o) {
  const LinearInputs in = {.x = o.x, .x_adapter = o.x_adapter};
  const LinearGroup group = {o.linears, o.count};
  const bool by_rows = o.batch_invariant != 0;
  if (o.x->dtype == BALORA_BF16) {
    forward_bf16(ctx, in, group, by_rows);
  } else {
    linear_forward_wide(ctx, in, group, by_rows);
  }
  return 0;
}

int32_t linear_backward_kernel(Context* ctx, const balora_linear_backward& o) {
  for (int32_t i = 0; i < o.count; ++i) {
    if (o.linears[i].y) continue;
    for (const LowRankOperands& part : parts_of(o.linears[i])) {
      if (part.da) fill_zero(ctx, *part.da);
      if (part.db) fill_zero(ctx, *part.db);
    }
  }
  const LinearInputs in = {o.x, o.x_adapter, o.dx, o.dx_adapter};
  const LinearGroup group = {o.linears, o.count};
  if (dense_or_encoded(o.linears[0].weight).dtype == BALORA_BF16) {
    backward_bf16(ctx, in, group);
  } else {
    linear_backward_wide(ctx, in, group);
  }
  return 0;
}

}  // namespace balora::cuda
