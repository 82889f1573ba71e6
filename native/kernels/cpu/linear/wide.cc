// wide.h: the products of x and dY with the parts' columns, and the sums.
#include "kernels/cpu/linear/wide.h"

#include <algorithm>
#include <deque>
#include <vector>

#include "kernels/cpu/linear/output_scale.h"
#include "kernels/cpu/linear/pair.h"
#include "kernels/cpu/linear/thin.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/int8.h"
#include "kernels/cpu/products/product_sum.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/rows.h"

namespace balora {
namespace {

template <typename E>
View matrix(const void* data, int64_t rows, int64_t cols) {
  View view{};
  view.data = const_cast<void*>(data), view.dtype = kDtypeOfAcc<E>, view.ndim = 2;
  view.shape[0] = rows, view.shape[1] = cols, view.stride[0] = cols, view.stride[1] = 1;
  return view;
}

ProductTerm base_term(const View& x, const View& weight, bool transposed,
                      const Int8Weight* int8 = nullptr) {
  return {x.data, x.dtype, x.shape[1], &weight, transposed, 1, int8};
}

// Whether rows of this type are widened before they are multiplied.
bool is_widened(int32_t dtype) {
  return (dtype == BALORA_BF16 || dtype == BALORA_F16) && !gemm_has_bf16();
}

void write_sum(Context* ctx, const View& out, std::span<const ProductTerm> terms) {
  if (terms.empty()) return fill_zero(out);
  sum_products(ctx, {out.shape[0], out.shape[1], terms}, dense_output(out));
}

// The U of each part where it is wanted, from the columns of x [A | dA].
template <typename E>
void copy_u(Context* ctx, const PackedPairs& pairs, const E* columns, int64_t m) {
  const int64_t ld = pairs.k();
  for (const PackedPairs::Place& place : pairs.places()) {
    E* const u = data_of<E>(place.part->u);
    if (!u) continue;
    const int64_t rank = rank_of(*place.part);
    parallel_for(ctx, m, 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(columns + i * ld + place.first, rank, u + i * rank);
      }
    });
  }
}

// A linear in a forward pass: what does not depend on the rows.
struct ForwardLinear {
  const LinearOperands& linear;
  const View& weight;
  const Int8Weight* int8;
  const void* u = nullptr;  // its columns of x's products; null: it has no parts
  View b{};                 // which they meet
  View sum{};               // y, or what is scaled to it
};

// Rows that are widened at a time, in even parts whose `columns` in f32 are 8 MiB at most, or 256
// rows: each decodes or widens the weights anew.
int64_t rows_at_once(int64_t m, int64_t columns) {
  constexpr int64_t kElements = int64_t{1} << 21;
  return even_share(
      m, std::clamp<int64_t>(kElements / std::max<int64_t>(columns, 1) / 64 * 64, 256, 16384));
}

// Narrow rows are widened here, once for all of the group's products; products widen what they are
// given otherwise, each for itself.
template <typename E>
void forward(Context* ctx, const balora_linear_forward& o) {
  const View &x = *o.x, &input = o.x_adapter ? *o.x_adapter : x;
  const auto linears = linears_of(o);
  const bool by_rows = o.batch_invariant != 0;  // products/row_product.h
  const int64_t m = x.shape[0], in = x.shape[1];
  const bool keeps = keeps_factors(by_rows, m);
  Int8Rows quantised = codes_of(o);
  PackedPairs pairs(ctx, kDtypeOfAcc<E>, keeps);
  for (size_t i = 0; i < linears.size(); ++i) {
    for (const LowRankOperands& part : parts_of(linears[i]))
      pairs.add(part, static_cast<int64_t>(i));
  }
  const int64_t count = pairs.k();
  E* const u = count > 0 ? workspace<E>(ctx, m * count) : nullptr;
  std::vector<Projection> projection;
  if (u) {
    const void* const a = pairs.columns(pairs.places(), Side::kA, in);
    projection.push_back({{a, kDtypeOfAcc<E>, in, true}, count, {u, kDtypeOfAcc<E>, count}});
  }
  std::vector<ForwardLinear> all;
  bool widens = false;  // once for all products
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOperands& linear = linears[i];
    const View& weight = dense_or_encoded(linear.weight);
    ForwardLinear one{linear, weight, int8_copy(ctx, weight, o.int8)};
    const PackedPairs::Places own = pairs.of(static_cast<int64_t>(i));
    if (!own.empty()) {
      const int64_t outs = weight.shape[0];
      one.b = matrix<E>(pairs.rows(own, Side::kB, outs), outs, pairs.width(own));
      one.u = u + own.front().first;
    }
    one.sum = linear.output_scale ? sum_before_scale(ctx, linear) : *linear.y;
    if (one.int8 && m > 0 && !quantised.q) {
      quantised = quantise_rows(ctx, x.data, x.dtype, m, in, nullptr, one.int8->rotation());
    }
    widens = widens || !one.int8 || linear.weight_change;
    all.push_back(one);
  }
  widens = widens && !by_rows && is_widened(x.dtype);
  if (!widens) thin_products(ctx, input, projection, {}, by_rows);
  const bool apart = &x != &input;
  const int64_t height = widens ? rows_at_once(m, apart ? 2 * in : in) : m;
  const Scratch<float> wide_x(ctx, widens ? height * in : 0);
  const Scratch<float> wide_input(ctx, widens && apart ? height * in : 0);
  for (int64_t first = 0; first < m; first += height) {
    const int64_t rows = std::min(height, m - first);
    View some = rows_of(x, first, rows), some_input = rows_of(input, first, rows);
    if (widens) {
      std::vector<Projection> own = projection;
      for (Projection& each : own) {
        each.out.data = offset_by(each.out.data, first * each.out.ld, each.out.dtype);
      }
      if (apart) {
        thin_products(ctx, some_input, own, {}, false, wide_input.data());
        some_input = matrix<float>(wide_input.data(), rows, in);
        own.clear();
      }
      thin_products(ctx, some, own, {}, false, wide_x.data());
      some = matrix<float>(wide_x.data(), rows, in);
      if (!apart) some_input = some;
    }
    for (const ForwardLinear& one : all) {
      std::vector<ProductTerm> terms;
      if (one.u) {
        const void* const from = offset_by(one.u, first * count, kDtypeOfAcc<E>);
        terms.push_back({from, kDtypeOfAcc<E>, count, &one.b, true});
      }
      if (one.linear.weight_change)
        terms.push_back(base_term(some_input, *one.linear.weight_change, true));
      terms.push_back(base_term(some, one.weight, true, one.int8));
      if (one.int8) terms.back().int8_rows = quantised.from(first);
      const View to = rows_of(one.sum, first, rows);
      const View* const bias = one.linear.output_scale ? nullptr : one.linear.bias;
      sum_products(ctx,
                   {.m = rows, .n = to.shape[1], .terms = terms, .bias = bias, .by_rows = by_rows},
                   dense_output(to));
    }
  }
  copy_u(ctx, pairs, u, m);
  for (const ForwardLinear& one : all) {
    if (one.linear.output_scale) apply_output_scale(ctx, one.linear, one.sum);
  }
}

// The thin products of dY: dU of every part in `pairs`, and every db.
template <typename E>
E* output_products(Context* ctx, std::span<const LinearOperands> linears, PackedPairs& pairs,
                   int64_t m) {
  const int64_t count = pairs.k();
  E* const du = count > 0 ? workspace<E>(ctx, m * count) : nullptr;
  for (size_t i = 0; i < linears.size(); ++i) {
    if (!linears[i].y) continue;
    const PackedPairs::Places own = pairs.of(static_cast<int64_t>(i));
    std::vector<Projection> projection;
    if (!own.empty()) {
      const int64_t columns = pairs.width(own);
      const void* const b = pairs.columns(own, Side::kB, linears[i].y->shape[1]);
      projection.push_back(
          {{b, kDtypeOfAcc<E>, columns}, columns, {du + own.front().first, kDtypeOfAcc<E>, count}});
    }
    std::vector<Contraction> gradients;
    for (const LowRankOperands& part : parts_of(linears[i])) {
      if (!part.db) continue;
      const int64_t rank = part.b->shape[1];
      gradients.push_back({{part.u->data, rank, rank}, part.scale, part.db, true});
    }
    thin_products(ctx, *linears[i].y, projection, gradients);
  }
  return du;
}

template <typename E>
void backward(Context* ctx, const balora_linear_backward& g) {
  const auto linears = linears_of(g);
  const View* const low_rank_dx = g.x_adapter ? g.dx_adapter : g.dx;
  const int64_t m = rows_of(g), in = dense_or_encoded(linears[0].weight).shape[1];
  PackedPairs pairs(ctx, kDtypeOfAcc<E>, false);
  std::deque<LowRankOperands> without_start;
  for (size_t i = 0; i < linears.size(); ++i) {
    for (const LowRankOperands& part : parts_of(linears[i])) {
      if (!linears[i].y) {
        if (part.da) fill_zero(*part.da);
        if (part.db) fill_zero(*part.db);
      } else if (low_rank_dx) {
        pairs.add(part, static_cast<int64_t>(i));
      } else if (part.da) {  // which reads dY B alone
        LowRankOperands& own = without_start.emplace_back(part);
        own.start_a = own.start_b = nullptr;
        pairs.add(own, static_cast<int64_t>(i));
      }
    }
  }
  const int64_t count = pairs.k();
  E* const du = output_products<E>(ctx, linears, pairs, m);
  std::vector<Contraction> gradients;
  for (const PackedPairs::Place& place : pairs.places()) {
    const LowRankOperands& part = *place.part;
    if (part.da) gradients.push_back({{du + place.first, count, rank_of(part)}, 1, part.da});
  }
  if (!gradients.empty()) thin_products(ctx, g.x_adapter ? *g.x_adapter : *g.x, {}, gradients);
  std::vector<ProductTerm> base, low_rank;
  View a{};
  if (low_rank_dx && count > 0) {
    a = matrix<E>(pairs.rows(pairs.places(), Side::kA, in), count, in);
    (g.x_adapter ? low_rank : base).push_back({du, kDtypeOfAcc<E>, count, &a});
  }
  for (const LinearOperands& linear : linears) {
    if (!linear.y) continue;
    const View& weight = dense_or_encoded(linear.weight);
    base.push_back(base_term(*linear.y, weight, false, int8_copy(ctx, weight, g.int8)));
  }
  if (g.dx) write_sum(ctx, *g.dx, base);
  if (g.x_adapter && g.dx_adapter) write_sum(ctx, *g.dx_adapter, low_rank);
}

bool in_f64(std::span<const LinearOperands> linears) {
  return std::any_of(linears.begin(), linears.end(), [](const LinearOperands& linear) {
    return linear.part_count > 0 && linear.parts[0].a->dtype == BALORA_F64;
  });
}

}  // namespace

void linear_forward_wide(Context* ctx, const balora_linear_forward& o) {
  if (in_f64(linears_of(o))) return forward<double>(ctx, o);
  forward<float>(ctx, o);
}

void linear_backward_wide(Context* ctx, const balora_linear_backward& o) {
  if (in_f64(linears_of(o))) return backward<double>(ctx, o);
  backward<float>(ctx, o);
}

}  // namespace balora
