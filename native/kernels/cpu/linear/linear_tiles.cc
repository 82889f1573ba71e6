// linear_tiles.h: lays out the segments, projections and sums of one walk (tiles.h).
#include "kernels/cpu/linear/linear_tiles.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/linear/kept_factors.h"
#include "kernels/cpu/linear/low_rank.h"
#include "kernels/cpu/linear/low_rank_segment.h"
#include "kernels/cpu/linear/output_scale.h"
#include "kernels/cpu/products/int8.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/arena.h"
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

// The columns of factors that are packed together, one after the other.
class PackedColumns {
 public:
  explicit PackedColumns(int64_t k) : k_(k) {}

  void add(const LowRankUpdate& update, Side side) { add_columns(update, side, lines_); }
  int64_t size() const { return tiles_size(k_, static_cast<int64_t>(lines_.size())); }
  // Packs them and gives them to the factors that have no tiles, in the order of add().
  void pack(Context* ctx, bf16* to, std::span<TileFactor> factors) const {
    if (lines_.empty()) return;
    pack_factor_columns(ctx, lines_, k_, to);
    for (TileFactor& factor : factors) {
      if (factor.tiles) continue;
      factor.tiles = to;
      to += tiles_size(k_, 2 * round_up(factor.rank, kRankTile));
    }
  }

 private:
  int64_t k_;
  std::vector<FactorLine> lines_;
};

// dU of every update in f32 where da needs it (LowRankUpdate::du), and the gradients of the inputs.
// `updates` are those of each linear.
void backward_inputs(Context* ctx, const balora_linear_backward& g,
                     std::span<std::vector<LowRankUpdate>> updates, int64_t m, int64_t in) {
  const auto linears = linears_of(g);
  const View* low_rank_dx = g.x_adapter ? g.dx_adapter : g.dx;
  KSegment segment;
  std::vector<size_t> ends;  // of each linear's updates in the segment
  int64_t columns_bytes = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    int64_t columns = 0;
    for (LowRankUpdate& update : updates[i]) {
      if (!linears[i].y || !(update.da || low_rank_dx)) continue;
      if (update.da) update.du = workspace<float>(ctx, m * update.rank());
      segment.add(update);
      columns += projection_columns(update);
    }
    ends.push_back(segment.places().size());
    columns_bytes +=
        Arena::bytes<bf16>(tiles_size(dense_or_encoded(linears[i].weight).shape[0], columns));
  }
  const int64_t a_size = low_rank_dx ? segment.a_size(m) : 0;
  const int64_t b_size = low_rank_dx ? segment.b_size(in) : 0;
  const Scratch<char> a_scratch(ctx, Arena::bytes<bf16>(a_size));
  const Scratch<char> b_scratch(ctx, Arena::bytes<bf16>(b_size) + columns_bytes);
  Arena a(a_scratch.data()), b(b_scratch.data());
  if (a_size > 0) {
    auto* rows = b.take<bf16>(b_size);
    segment.pack_rows(ctx, rows, in, Side::kA, false);
    segment.use(ctx, a.take<bf16>(a_size), rows, m);
  }
  std::vector<TileProjection> projections;
  size_t next = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    if (next == ends[i]) continue;
    const int64_t k = dense_or_encoded(linears[i].weight).shape[0];
    PackedColumns columns(k);
    TileProjection projection{.x = rows_term(*linears[i].y)};
    for (; next < ends[i]; ++next) {
      const KSegment::Place& place = segment.places()[next];
      const auto scale = static_cast<float>(place.update.scale);
      projection.factors.push_back(segment.factor(place, scale, place.update.du));
      columns.add(place.update, Side::kB);
    }
    columns.pack(ctx, b.take<bf16>(columns.size()), projection.factors);
    projections.push_back(std::move(projection));
  }
  std::vector<TileSum> sums;
  const auto add_sum = [&](const View& out, bool with_base, bool with_parts) {
    TileSum sum{in, {}, {out.data, out.dtype, in}};
    if (with_parts && a_size > 0) sum.terms.push_back(segment.term());
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

// B of the updates of a linear (outs,R) as rows of k, where it is kept (kept_factors.h); else null.
const bf16* kept_rows(Context* ctx, const KSegment& segment, int64_t outs, bool keeps) {
  if (!keeps) {
    for (const KSegment::Place& place : segment.places()) drop_stale(ctx, *place.update.b);
    return nullptr;
  }
  KeptKey key{.form = KeptKey::Form::kTileRows, .extent = outs};
  for (const KSegment::Place& place : segment.places()) key.add(place.update, Side::kB);
  const auto pack = [&](void* to) {
    segment.pack_rows(ctx, static_cast<bf16*>(to), outs, Side::kB, true);
  };
  return static_cast<const bf16*>(kept_matrix(ctx, *segment.places()[0].update.b, key,
                                              Arena::bytes<bf16>(segment.b_size(outs)), pack));
}

// A of an update (R,in) as columns, likewise.
const bf16* kept_columns(Context* ctx, const LowRankUpdate& update, int64_t in, bool keeps) {
  if (!keeps) {
    drop_stale(ctx, *update.a);
    return nullptr;
  }
  KeptKey key{.form = KeptKey::Form::kTileColumns, .extent = in};
  key.add(update, Side::kA);
  const auto pack = [&](void* to) {
    std::vector<FactorLine> lines;
    add_columns(update, Side::kA, lines);
    pack_factor_columns(ctx, lines, in, static_cast<bf16*>(to));
  };
  const int64_t elements = tiles_size(in, projection_columns(update));
  return static_cast<const bf16*>(
      kept_matrix(ctx, *update.a, key, Arena::bytes<bf16>(elements), pack));
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
  std::vector<KSegment> segments(linears.size());
  int64_t a_bytes = 0, b_bytes = 0, bias_bytes = 0, column_count = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    for (const LowRankUpdate& update : low_rank_updates_of(linears[i])) {
      segments[i].add(update);
      column_count += projection_columns(update);
    }
    const int64_t outs = dense_or_encoded(linears[i].weight).shape[0];
    a_bytes += Arena::bytes<bf16>(segments[i].a_size(m));
    b_bytes += Arena::bytes<bf16>(segments[i].b_size(outs));
    if (linears[i].bias) bias_bytes += Arena::bytes<float>(outs);
  }
  b_bytes += Arena::bytes<bf16>(tiles_size(in, column_count));
  const Scratch<char> a_scratch(ctx, a_bytes), b_scratch(ctx, b_bytes);
  const Scratch<char> bias_scratch(ctx, bias_bytes);
  Arena a(a_scratch.data()), b(b_scratch.data()), bias(bias_scratch.data());
  TileProjection projection{.x = rows_term(x_adapter ? *x_adapter : x)};
  PackedColumns columns(in);
  std::vector<TileSum> sums;
  std::vector<View> scaled_sums;
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOperands& linear = linears[i];
    const int64_t outs = dense_or_encoded(linear.weight).shape[0];
    scaled_sums.push_back(linear.output_scale ? sum_before_scale(ctx, linear) : View{});
    const View& to = linear.output_scale ? scaled_sums.back() : *linear.y;
    TileSum sum{outs, {}, {to.data, to.dtype, outs}};
    KSegment& segment = segments[i];
    if (segment.k() > 0) {
      const bf16* rows = kept_rows(ctx, segment, outs, keeps);
      if (!rows) {
        auto* const packed = b.take<bf16>(segment.b_size(outs));
        segment.pack_rows(ctx, packed, outs, Side::kB, true);
        rows = packed;
      }
      segment.use(ctx, a.take<bf16>(segment.a_size(m)), rows, m);
      sum.terms.push_back(segment.term());
    }
    for (const KSegment::Place& place : segment.places()) {
      const bf16* const tiles = kept_columns(ctx, place.update, in, keeps);
      if (!tiles) columns.add(place.update, Side::kA);
      const View* u = place.update.u;
      projection.factors.push_back(segment.factor(place, 1, data_of<float>(u), tiles));
    }
    if (linear.bias && !linear.output_scale) {
      auto* wide = bias.take<float>(outs);
      convert_row(data_of<bf16>(linear.bias), wide, outs);
      sum.out.bias = wide;
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
  if (!projection.factors.empty()) {
    columns.pack(ctx, b.take<bf16>(columns.size()), projection.factors);
    projections = {&projection, 1};
  }
  run_tiles(ctx, m, projections, sums);
  for (size_t i = 0; i < linears.size(); ++i) {
    if (linears[i].output_scale) apply_output_scale(ctx, linears[i], scaled_sums[i]);
  }
}

void linear_backward_tiles(Context* ctx, const balora_linear_backward& g) {
  const auto linears = linears_of(g);
  int64_t m = 0;
  for (const LinearOperands& linear : linears) m = linear.y ? linear.y->shape[0] : m;
  const int64_t in = dense_or_encoded(linears[0].weight).shape[1];
  std::vector<std::vector<LowRankUpdate>> updates;
  for (const LinearOperands& linear : linears) updates.push_back(low_rank_updates_of(linear));
  backward_inputs(ctx, g, updates, m, in);
  // Rounding u and dU of a change loses no more than what rounded factors have lost of its sums.
  const auto rounding = [](const LowRankUpdate& update) {
    return update.is_change() ? Rounding::kOnce : Rounding::kHalves;
  };
  std::vector<Contracted> jobs;
  for (const std::vector<LowRankUpdate>& own : updates) {
    for (const LowRankUpdate& update : own) {
      if (!update.da) continue;
      if (update.du && m > 0) {
        jobs.push_back({update.du, 1, update.da, rounding(update)});
      } else {
        fill_zero(*update.da);
      }
    }
  }
  if (!jobs.empty()) contract_all(ctx, g.x_adapter ? *g.x_adapter : *g.x, jobs, false);
  for (size_t i = 0; i < linears.size(); ++i) {
    jobs.clear();
    for (const LowRankUpdate& update : updates[i]) {
      if (!update.db) continue;
      if (linears[i].y && m > 0) {
        const auto scale = static_cast<float>(update.scale);
        jobs.push_back({data_of<float>(update.u), scale, update.db, rounding(update)});
      } else {
        fill_zero(*update.db);
      }
    }
    if (!jobs.empty()) contract_all(ctx, *linears[i].y, jobs, true);
  }
}

}  // namespace balora
