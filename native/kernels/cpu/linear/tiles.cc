// linear/tiles.h: lays out the segments, projections and sums of one walk (products/tiles.h).
#include "kernels/cpu/linear/tiles.h"

#include <algorithm>
#include <deque>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/linear/output_scale.h"
#include "kernels/cpu/linear/pair.h"
#include "kernels/cpu/linear/thin.h"
#include "kernels/cpu/products/int8.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

TileTerm rows_term(const View& x) {
  return {.a = data_of<bf16>(&x), .lda = x.shape[1], .k = x.shape[1]};
}

// x W^T, or x W. The walk packs W anew each time: next to the products of a few hundred rows that
// costs nothing (it reads what has to be read anyhow), and nothing of it has to be kept.
TileTerm base_term(const View& x, const View& weight, bool transposed) {
  TileTerm term = rows_term(x);
  term.matrix = TileMatrix::of(weight, 0, transposed);
  return term;
}

// Adds dY W to a sum: in int8 where that is asked for and the weight is frozen.
void add_base_gradient(Context* ctx, TileSum& sum, const LinearOperands& linear, int32_t int8) {
  const View &dy = *linear.y, &weight = dense_or_encoded(linear.weight);
  const Int8Weight* const copy = int8_copy(ctx, weight, int8);
  if (!copy) {
    sum.terms.push_back(base_term(dy, weight, false));
    return;
  }
  const Int8Rows rows =
      quantise_rows(ctx, dy.data, dy.dtype, dy.shape[0], dy.shape[1], copy->scale(), 0);
  sum.int8.push_back({rows, copy->backward()});
}

// A gradient for contract_tiles: scale * p^T x, p (m,R), as (R,k), or its transpose (k,R).
struct Contracted {
  const float* p;
  float scale;
  const View* out;
  Rounding rounding;
};

void contract_all(Context* ctx, const View& x, std::span<const Contracted> jobs, bool transposed) {
  std::vector<RankLine> lines;
  for (const Rounding rounding : {Rounding::kOnce, Rounding::kHalves}) {
    lines.clear();
    for (const Contracted& job : jobs) {
      if (job.rounding != rounding) continue;
      const int64_t rank = job.out->shape[transposed ? 1 : 0], k = x.shape[1];
      float* const out = data_of<float>(job.out);
      for (int64_t r = 0; r < rank; ++r) {
        float* const to = out + (transposed ? r : r * k);
        lines.push_back({job.p + r, rank, job.scale, to, transposed ? rank : 1});
      }
    }
    if (lines.empty()) continue;
    contract_tiles(ctx, data_of<bf16>(&x), x.shape[0], x.shape[1], lines, rounding);
  }
}

// The gradients of the inputs, and dU of every part where da needs it (PackedPairs::Place).
void backward_inputs(Context* ctx, const balora_linear_backward& g, PackedPairs& pairs, int64_t m,
                     int64_t in) {
  const auto linears = linears_of(g);
  const View* low_rank_dx = g.x_adapter ? g.dx_adapter : g.dx;
  for (size_t i = 0; i < linears.size(); ++i) {
    for (const LowRankOperands& part : parts_of(linears[i])) {
      if (!linears[i].y || !(part.da || low_rank_dx)) continue;
      float* const du = part.da ? workspace<float>(ctx, m * rank_of(part)) : nullptr;
      pairs.add(part, static_cast<int64_t>(i), du);
    }
  }
  std::vector<TileTerm> segment;
  if (low_rank_dx && pairs.k() > 0) {
    segment.push_back(pairs.segment(m, pairs.rows(pairs.places(), Side::kA, in)));
  }
  std::vector<TileProjection> projections;
  for (size_t i = 0; i < linears.size(); ++i) {
    TileProjection projection;
    for (const PackedPairs::Place& place : pairs.of(static_cast<int64_t>(i))) {
      const int64_t outs = linears[i].y->shape[1];
      projection.factors.push_back(pairs.projection(place, static_cast<float>(place.part->scale),
                                                    place.du,
                                                    pairs.columns({&place, 1}, Side::kB, outs)));
    }
    if (projection.factors.empty()) continue;
    projection.x = rows_term(*linears[i].y);
    projections.push_back(std::move(projection));
  }
  std::vector<TileSum> sums;
  const auto add_sum = [&](const View& out, bool with_base, bool with_parts) {
    TileSum sum{in, {}, {out.data, out.dtype, in}};
    if (with_parts) sum.terms = segment;
    for (const LinearOperands& linear : linears) {
      if (!with_base || !linear.y) continue;
      add_base_gradient(ctx, sum, linear, g.int8);
    }
    sums.push_back(std::move(sum));
  };
  if (g.dx) add_sum(*g.dx, true, !g.x_adapter);
  if (g.x_adapter && g.dx_adapter) add_sum(*g.dx_adapter, false, true);
  run_tiles(ctx, m, projections, sums);
}

}  // namespace

bool linear_fits_tiles(const View& input, std::span<const LinearOperands> linears) {
  if (input.dtype != BALORA_BF16) return false;
  return std::all_of(linears.begin(), linears.end(), [](const LinearOperands& linear) {
    const View& weight = dense_or_encoded(linear.weight);
    return view_contiguous(weight) && view_numel(weight) > 0;
  });
}

void linear_forward_tiles(Context* ctx, const balora_linear_forward& o) {
  const View& x = *o.x;
  const View* const x_adapter = o.x_adapter;
  const auto linears = linears_of(o);
  const int64_t m = x.shape[0], in = x.shape[1];
  const bool keeps = keeps_factors(o.batch_invariant != 0, m);
  Int8Rows quantised = codes_of(o);
  TileProjection projection{.x = rows_term(x_adapter ? *x_adapter : x)};
  std::deque<PackedPairs> pairs;  // of each linear
  std::deque<Scratch<float>> biases;
  std::vector<TileSum> sums;
  std::vector<View> scaled_sums;
  for (const LinearOperands& linear : linears) {
    const int64_t outs = dense_or_encoded(linear.weight).shape[0];
    scaled_sums.push_back(linear.output_scale ? sum_before_scale(ctx, linear) : View{});
    const View& to = linear.output_scale ? scaled_sums.back() : *linear.y;
    TileSum sum{outs, {}, {to.data, to.dtype, outs}};
    PackedPairs& own = pairs.emplace_back(ctx, BALORA_BF16, keeps);
    for (const LowRankOperands& part : parts_of(linear)) own.add(part);
    if (own.k() > 0) {
      sum.terms.push_back(own.segment(m, own.rows(own.places(), Side::kB, outs)));
    }
    for (const PackedPairs::Place& place : own.places()) {
      projection.factors.push_back(own.projection(place, 1, data_of<float>(place.part->u),
                                                  own.columns({&place, 1}, Side::kA, in)));
    }
    if (linear.bias && !linear.output_scale) {
      sum.out.bias = biases.emplace_back(ctx, outs).data();
      convert_row(data_of<bf16>(linear.bias), biases.back().data(), outs);
    }
    if (linear.weight_change) {
      sum.terms.push_back(base_term(x_adapter ? *x_adapter : x, *linear.weight_change, true));
    }
    if (const Int8Weight* const copy = int8_copy(ctx, dense_or_encoded(linear.weight), o.int8)) {
      if (!quantised.q) {
        quantised = quantise_rows(ctx, x.data, x.dtype, m, in, nullptr, copy->rotation());
      }
      sum.int8.push_back({quantised, copy->forward()});
    } else {
      sum.terms.push_back(base_term(x, dense_or_encoded(linear.weight), true));
    }
    sums.push_back(std::move(sum));
  }
  std::span<const TileProjection> projections;
  if (!projection.factors.empty()) projections = {&projection, 1};
  run_tiles(ctx, m, projections, sums);
  for (size_t i = 0; i < linears.size(); ++i) {
    if (linears[i].output_scale) apply_output_scale(ctx, linears[i], scaled_sums[i]);
  }
}

void linear_backward_tiles(Context* ctx, const balora_linear_backward& g) {
  const auto linears = linears_of(g);
  const int64_t m = rows_of(g);
  const int64_t in = dense_or_encoded(linears[0].weight).shape[1];
  PackedPairs pairs(ctx, BALORA_BF16, false);
  backward_inputs(ctx, g, pairs, m, in);
  // Rounding u and dU of a change loses no more than what rounded factors have lost of its sums.
  const auto rounding = [](const LowRankOperands& part) {
    return is_change(part) ? Rounding::kOnce : Rounding::kHalves;
  };
  std::vector<Contracted> jobs;
  for (const PackedPairs::Place& place : pairs.places()) {
    if (place.du && m > 0) jobs.push_back({place.du, 1, place.part->da, rounding(*place.part)});
  }
  if (!jobs.empty()) contract_all(ctx, g.x_adapter ? *g.x_adapter : *g.x, jobs, false);
  for (const LinearOperands& linear : linears) {
    jobs.clear();
    for (const LowRankOperands& part : parts_of(linear)) {
      const bool is_zero = !linear.y || m == 0;
      if (part.da && is_zero) fill_zero(*part.da);
      if (!part.db || rank_of(part) == 0) continue;
      if (is_zero) {
        fill_zero(*part.db);
      } else {
        const auto scale = static_cast<float>(part.scale);
        jobs.push_back({data_of<float>(part.u), scale, part.db, rounding(part)});
      }
    }
    if (!jobs.empty()) contract_all(ctx, *linear.y, jobs, true);
  }
}

}  // namespace balora
