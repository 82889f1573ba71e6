// linear_tiles.h: lays out the stretches, projections and sums of one walk (tiles.h).
#include "kernels/cpu/linear/linear_tiles.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/linear/linear_stretch.h"
#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

TileTerm rows_term(const View& x, const bf16* tiles) {
  return {data_of<bf16>(&x), x.shape[1], x.shape[1], tiles};
}

// x W^T, or x W. The walk packs W anew each time: next to the products of a few hundred rows that
// costs nothing (it reads what has to be read anyhow), and nothing of it has to be kept.
TileTerm base_term(const View& x, const View& weight, bool transposed) {
  const int64_t in = weight.shape[1];
  TileTerm term = rows_term(x, nullptr);
  term.matrix = transposed ? TileMatrix{data_of<bf16>(&weight), 1, in}
                           : TileMatrix{data_of<bf16>(&weight), in, 1};
  return term;
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

void zero(const View& view) {
  std::fill_n(data_of<float>(&view), view_numel(view), 0.0f);
}

// dU of every part in f32 where da needs it, and the gradients of the inputs. `pieces` are those of
// each linear.
std::vector<float*> backward_inputs(Context* ctx, const LinearGradients& g,
                                    std::span<const LinearOperands> linears,
                                    std::span<const LowRankOperands> parts,
                                    std::span<const std::vector<Piece>> pieces, int64_t m,
                                    int64_t in) {
  const View* low_rank_dx = g.x_adapter ? g.dx_adapter : g.dx;
  std::vector<float*> du(parts.size(), nullptr);
  const auto du_of = [&](const Piece& piece) -> float*& {
    return du[static_cast<size_t>(piece.part - parts.data())];
  };
  Stretch stretch;
  int64_t columns_bytes = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    int64_t columns = 0;
    for (const Piece& piece : pieces[i]) {
      if (!linears[i].y || !(piece.part->da || low_rank_dx)) continue;
      stretch.add(piece);
      columns += projection_columns(piece);
      if (piece.part->da) du_of(piece) = workspace<float>(ctx, m * piece.rank());
    }
    columns_bytes += Arena::bytes<bf16>(tiles_size(linears[i].weight->shape[0], columns));
  }
  const int64_t a_size = low_rank_dx ? stretch.a_size(m) : 0;
  const int64_t b_size = low_rank_dx ? stretch.b_size(in) : 0;
  Arena a(ctx, CpuState::kFactorA, Arena::bytes<bf16>(a_size));
  Arena b(ctx, CpuState::kFactorB, Arena::bytes<bf16>(b_size) + columns_bytes);
  if (a_size > 0) {
    stretch.make(ctx, a.take<bf16>(a_size), b.take<bf16>(b_size), m, in, Side::kA, false);
  }
  std::vector<TileProjection> projections;
  std::vector<FactorLine> columns;
  for (size_t i = 0; i < linears.size(); ++i) {
    columns.clear();
    TileProjection projection;
    for (const Stretch::Place& place : stretch.places()) {
      const LowRankOperands& part = *place.piece.part;
      if (static_cast<size_t>(part.linear) != i) continue;
      add_columns(place.piece, Side::kB, columns);
      projection.factors.push_back(
          stretch.factor(place, static_cast<float>(part.scale), du_of(place.piece), nullptr));
    }
    if (columns.empty()) continue;
    const int64_t k = linears[i].weight->shape[0];
    auto* tiles = b.take<bf16>(tiles_size(k, static_cast<int64_t>(columns.size())));
    pack_factor_columns(ctx, columns, k, tiles);
    projection.x = rows_term(*linears[i].y, tiles);
    projections.push_back(std::move(projection));
  }
  std::vector<TileSum> sums;
  const auto add_sum = [&](const View& out, bool with_base, bool with_parts) {
    TileSum sum{in, {}, {out.data, out.dtype, in}};
    if (with_parts && a_size > 0) sum.terms.push_back(stretch.term());
    for (const LinearOperands& linear : linears) {
      if (!with_base || !linear.y) continue;
      sum.terms.push_back(base_term(*linear.y, *linear.weight, false));
    }
    sums.push_back(std::move(sum));
  };
  if (g.dx) add_sum(*g.dx, true, !g.x_adapter);
  if (g.x_adapter && g.dx_adapter) add_sum(*g.dx_adapter, false, true);
  run_tiles(ctx, m, projections, sums);
  return du;
}

}  // namespace

bool linear_fits_tiles(const View& input, std::span<const LinearOperands> linears) {
  if (input.dtype != BALORA_BF16 || !tiles_ready()) return false;
  return std::all_of(linears.begin(), linears.end(), [](const LinearOperands& linear) {
    return view_contiguous(*linear.weight) && view_numel(*linear.weight) > 0;
  });
}

void linear_forward_tiles(Context* ctx, const View& x, const View* x_adapter,
                          std::span<const LinearOperands> linears,
                          std::span<const LowRankOperands> parts) {
  const int64_t m = x.shape[0], in = x.shape[1];
  std::vector<Stretch> stretches(linears.size());
  int64_t a_bytes = 0, b_bytes = 0, bias_bytes = 0, column_count = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    for (const Piece& piece : pieces_of(ctx, parts, i)) {
      stretches[i].add(piece);
      column_count += projection_columns(piece);
    }
    const int64_t outs = linears[i].weight->shape[0];
    a_bytes += Arena::bytes<bf16>(stretches[i].a_size(m));
    b_bytes += Arena::bytes<bf16>(stretches[i].b_size(outs));
    if (linears[i].bias) bias_bytes += Arena::bytes<float>(outs);
  }
  const int64_t columns_size = tiles_size(in, column_count);
  Arena a(ctx, CpuState::kFactorA, a_bytes), bias(ctx, CpuState::kWideC, bias_bytes);
  Arena b(ctx, CpuState::kFactorB, b_bytes + Arena::bytes<bf16>(columns_size));
  TileProjection projection;
  std::vector<FactorLine> columns;
  std::vector<TileSum> sums;
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOperands& linear = linears[i];
    const int64_t outs = linear.weight->shape[0];
    TileSum sum{outs, {}, {linear.y->data, linear.y->dtype, outs}};
    Stretch& stretch = stretches[i];
    if (stretch.k() > 0) {
      stretch.make(ctx, a.take<bf16>(stretch.a_size(m)), b.take<bf16>(stretch.b_size(outs)), m,
                   outs, Side::kB, true);
      sum.terms.push_back(stretch.term());
    }
    for (const Stretch::Place& place : stretch.places()) {
      const auto& [part, start] = place.piece;
      add_columns(place.piece, Side::kA, columns);
      projection.factors.push_back(stretch.factor(place, 1, data_of<float>(part->u),
                                                  start ? data_of<float>(start->u) : nullptr));
    }
    if (linear.bias) {
      auto* wide = bias.take<float>(outs);
      convert_rows(nullptr, {linear.bias->data, linear.bias->dtype, outs}, {wide, BALORA_F32, outs},
                   1, outs);
      sum.out.bias = wide;
    }
    sum.terms.push_back(base_term(x, *linear.weight, true));
    sums.push_back(std::move(sum));
  }
  if (columns.empty()) return run_tiles(ctx, m, {}, sums);
  auto* tiles = b.take<bf16>(columns_size);
  pack_factor_columns(ctx, columns, in, tiles);
  projection.x = rows_term(x_adapter ? *x_adapter : x, tiles);
  run_tiles(ctx, m, {&projection, 1}, sums);
}

void linear_backward_tiles(Context* ctx, const LinearGradients& g,
                           std::span<const LinearOperands> linears,
                           std::span<const LowRankOperands> parts) {
  int64_t m = 0;
  for (const LinearOperands& linear : linears) m = linear.y ? linear.y->shape[0] : m;
  const int64_t in = linears[0].weight->shape[1];
  std::vector<std::vector<Piece>> pieces(linears.size());
  // Of a change, rounding u and dU loses no more than what rounded factors have lost of its sums.
  std::vector<Rounding> rounding(parts.size(), Rounding::kHalves);
  for (size_t i = 0; i < linears.size(); ++i) {
    pieces[i] = pieces_of(ctx, parts, i);
    for (const Piece& piece : pieces[i]) {
      if (!piece.is_change()) continue;
      rounding[static_cast<size_t>(piece.part - parts.data())] = Rounding::kOnce;
    }
  }
  const std::vector<float*> du = backward_inputs(ctx, g, linears, parts, pieces, m, in);
  std::vector<Contracted> jobs;
  for (size_t p = 0; p < parts.size(); ++p) {
    if (!parts[p].da) continue;
    if (du[p] && m > 0) {
      jobs.push_back({du[p], 1, parts[p].da, rounding[p]});
    } else {
      zero(*parts[p].da);
    }
  }
  if (!jobs.empty()) contract_all(ctx, g.x_adapter ? *g.x_adapter : *g.x, jobs, false);
  for (size_t i = 0; i < linears.size(); ++i) {
    jobs.clear();
    for (size_t p = 0; p < parts.size(); ++p) {
      const LowRankOperands& part = parts[p];
      if (static_cast<size_t>(part.linear) != i || !part.db) continue;
      if (linears[i].y && m > 0) {
        const auto scale = static_cast<float>(part.scale);
        jobs.push_back({data_of<float>(part.u), scale, part.db, rounding[p]});
      } else {
        zero(*part.db);
      }
    }
    if (!jobs.empty()) contract_all(ctx, *linears[i].y, jobs, true);
  }
}

}  // namespace balora
