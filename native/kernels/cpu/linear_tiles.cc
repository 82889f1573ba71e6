// linear_tiles.h: lays out the stretches, projections and sums of one walk (tiles.h).
#include "kernels/cpu/linear_tiles.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/tiles.h"

namespace balora {
namespace {

// Hands out parts of one scratch buffer, each aligned to a cache line.
class Arena {
 public:
  Arena(Context* ctx, CpuState::Scratch index, int64_t bytes)
      : at_(static_cast<char*>(CpuState::of(ctx).scratch(index, static_cast<uint64_t>(bytes)))) {}
  template <typename T>
  T* take(int64_t elements) {
    char* taken = at_;
    at_ += bytes<T>(elements);
    return reinterpret_cast<T*>(taken);
  }
  template <typename T>
  static int64_t bytes(int64_t elements) {
    return round_up(elements * static_cast<int64_t>(sizeof(T)), 64);
  }

 private:
  char* at_;
};

// The k columns that a list of parts takes in a sum, and where each part stands.
struct Stretch {
  struct Place {
    const LowRankOperands* part;
    int64_t first, step;
  };
  std::vector<Place> places;
  struct Range {
    int64_t begin, end;
  };
  std::vector<Range> unfilled;  // columns that no part fills: clear_rest
  int64_t used = 0;
  int64_t k = 0;
  bf16* a = nullptr;  // (rows up to a panel, k)
  bf16* tiles = nullptr;
};

int64_t rank_of(const LowRankOperands& part) {
  return part.a->shape[0];
}

Stretch layout(std::span<const LowRankOperands* const> parts) {
  Stretch stretch;
  for (size_t p = 0; p < parts.size();) {
    const int64_t rank = rank_of(*parts[p]);
    const int64_t step = p + 1 < parts.size() && rank_of(*parts[p + 1]) == rank ? 2 : 1;
    const int64_t first = round_up(stretch.used, 2);
    if (first > stretch.used) stretch.unfilled.push_back({stretch.used, first});
    for (int64_t i = 0; i < step; ++i, ++p) stretch.places.push_back({parts[p], first + i, step});
    stretch.used = first + 3 * step * rank;
  }
  stretch.k = round_up(stretch.used, kTileK);
  if (stretch.k > stretch.used) stretch.unfilled.push_back({stretch.used, stretch.k});
  return stretch;
}

// A factor as op(W) (k,R) or its transpose: element (i,r) at data[i * stride + r * rank_stride].
struct Lines {
  const float* data;
  int64_t rank_stride, stride;
};
Lines by_rank(const View& rank_major) {
  return {data_of<float>(&rank_major), rank_major.shape[1], 1};
}
Lines by_row(const View& row_major) {
  return {data_of<float>(&row_major), 1, row_major.shape[1]};
}

// The B side of a stretch: line(part) gives its factor, n its other extent.
template <typename Line>
void pack_stretch(Context* ctx, const Stretch& stretch, int64_t n, const Line& line) {
  std::vector<FactorLine> rows(static_cast<size_t>(stretch.k));
  for (const Stretch::Place& place : stretch.places) {
    const int64_t rank = rank_of(*place.part);
    const auto [lines, scale] = line(*place.part);
    for (int64_t r = 0; r < 3 * rank; ++r) {
      const Half half = r < 2 * rank ? Half::kHigh : Half::kLow;
      rows[static_cast<size_t>(place.first + r * place.step)] = {
          lines.data + r % rank * lines.rank_stride, lines.stride, scale, half};
    }
  }
  pack_factor_rows(ctx, rows, n, stretch.tiles);
}

// Zeros in the columns that no part fills: they meet zeros in B, but must not be NaN.
void clear_rest(Context* ctx, const Stretch& stretch, int64_t m) {
  if (stretch.unfilled.empty()) return;
  parallel_for(ctx, round_up(m, kPanelRows), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      bf16* row = stretch.a + i * stretch.k;
      for (const auto& [from, to] : stretch.unfilled) std::fill(row + from, row + to, bf16{0});
    }
  });
}

TileTerm stretch_term(const Stretch& stretch) {
  return {stretch.a, stretch.k, stretch.k, stretch.tiles, true};
}

TileFactor factor_of(const Stretch::Place& place, const Stretch& stretch, float scale, float* u) {
  return {rank_of(*place.part),
          scale,
          u,
          stretch.a ? stretch.a + place.first : nullptr,
          stretch.k,
          place.step};
}

// Adds the columns of one factor of a projection: panels of kRankTile upper, then lower halves.
void add_columns(const Lines& lines, int64_t rank, std::vector<FactorLine>& columns) {
  for (int64_t first = 0; first < rank; first += kRankTile) {
    for (const Half half : {Half::kHigh, Half::kLow}) {
      for (int64_t r = first; r < first + kRankTile; ++r) {
        const float* data = r < rank ? lines.data + r * lines.rank_stride : nullptr;
        columns.push_back({data, lines.stride, 1, half});
      }
    }
  }
}

int64_t projection_columns(std::span<const LowRankOperands* const> parts) {
  int64_t columns = 0;
  for (const LowRankOperands* part : parts) columns += 2 * round_up(rank_of(*part), kRankTile);
  return columns;
}

// The weights of a group in tiles, made anew for each walk: next to the products of a few hundred
// rows that costs nothing (it reads what has to be read anyhow), and nothing of it has to be kept.
class WeightTiles {
 public:
  WeightTiles(Context* ctx, std::span<const LinearOperands> linears, bool transposed)
      : ctx_(ctx), transposed_(transposed), arena_(ctx, CpuState::kWeightTiles, bytes(linears)) {}

  const bf16* take(const LinearOperands& linear) {
    const View& w = *linear.weight;
    const int64_t out = w.shape[0], in = w.shape[1];
    auto* tiles = arena_.take<bf16>(transposed_ ? tiles_size(in, out) : tiles_size(out, in));
    const auto* from = data_of<bf16>(&w);
    if (transposed_) {
      pack_tiles(ctx_, from, 1, in, in, out, tiles);
    } else {
      pack_tiles(ctx_, from, in, 1, out, in, tiles);
    }
    return tiles;
  }

 private:
  static int64_t bytes(std::span<const LinearOperands> linears) {
    int64_t sum = 0;
    for (const LinearOperands& linear : linears) {
      sum += Arena::bytes<bf16>(tiles_size(linear.weight->shape[0], linear.weight->shape[1]));
    }
    return sum;
  }

  Context* ctx_;
  bool transposed_;
  Arena arena_;
};

TileTerm rows_term(const View& x, const bf16* tiles) {
  return {data_of<bf16>(&x), x.shape[1], x.shape[1], tiles};
}

std::vector<const LowRankOperands*> parts_of(std::span<const LowRankOperands> parts,
                                             size_t linear) {
  std::vector<const LowRankOperands*> own;
  for (const LowRankOperands& part : parts) {
    if (static_cast<size_t>(part.linear) == linear && rank_of(part) > 0) own.push_back(&part);
  }
  return own;
}

// out = scale * sums, row by row or transposed.
void scatter(const float* sums, float scale, const View& out, bool transposed) {
  const int64_t rank = out.shape[transposed ? 1 : 0], k = out.shape[transposed ? 0 : 1];
  float* to = data_of<float>(&out);
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t i = 0; i < k; ++i) {
      to[transposed ? i * rank + r : r * k + i] = scale * sums[r * k + i];
    }
  }
}

// One column of p for contract_tiles of a gradient, and where it goes.
struct Contracted {
  const float* p;
  float scale;
  const View* out;
  int64_t rank;
};

void contract_all(Context* ctx, const View& x, std::span<const Contracted> jobs, bool transposed) {
  std::vector<RankLine> lines;
  for (const Contracted& job : jobs) {
    for (int64_t r = 0; r < job.rank; ++r) lines.push_back({job.p + r, job.rank});
  }
  if (lines.empty()) return;
  const int64_t k = x.shape[1], rank = static_cast<int64_t>(lines.size());
  Arena arena(ctx, CpuState::kFactorA, Arena::bytes<float>(rank * k));
  const float* sums = arena.take<float>(rank * k);
  contract_tiles(ctx, data_of<bf16>(&x), x.shape[0], k, lines, const_cast<float*>(sums));
  for (const Contracted& job : jobs) {
    scatter(sums, job.scale, *job.out, transposed);
    sums += job.rank * k;
  }
}

void zero(const View& view) {
  std::fill_n(data_of<float>(&view), view_numel(view), 0.0f);
}

// dU of every part in f32 where da needs it, and the gradients of the inputs.
std::vector<float*> backward_inputs(Context* ctx, const LinearGradients& g,
                                    std::span<const LinearOperands> linears,
                                    std::span<const LowRankOperands> parts, int64_t m, int64_t in) {
  const View* low_rank_dx = g.x_adapter ? g.dx_adapter : g.dx;
  std::vector<const LowRankOperands*> active;
  std::vector<float*> du(parts.size(), nullptr);
  for (const LowRankOperands& part : parts) {
    if (!linears[part.linear].y || rank_of(part) == 0 || !(part.da || low_rank_dx)) continue;
    active.push_back(&part);
    if (!part.da) continue;
    auto* buffer = static_cast<float*>(
        ctx->workspace(ctx, static_cast<uint64_t>(m * rank_of(part)) * sizeof(float)));
    if (!buffer) throw std::bad_alloc();
    du[static_cast<size_t>(&part - parts.data())] = buffer;
  }
  Stretch stretch = layout(active);
  if (!low_rank_dx) stretch.k = 0;
  int64_t bytes = Arena::bytes<bf16>(tiles_size(stretch.k, in));
  for (size_t i = 0; i < linears.size(); ++i) {
    const int64_t columns = projection_columns(parts_of(parts, i));
    bytes += Arena::bytes<bf16>(tiles_size(linears[i].weight->shape[0], columns));
  }
  Arena b(ctx, CpuState::kFactorB, bytes);
  const int64_t a_elements = round_up(m, kPanelRows) * stretch.k;
  Arena a(ctx, CpuState::kFactorA, Arena::bytes<bf16>(a_elements));
  if (stretch.k > 0) {
    stretch.a = a.take<bf16>(a_elements);
    stretch.tiles = b.take<bf16>(tiles_size(stretch.k, in));
    pack_stretch(ctx, stretch, in,
                 [](const LowRankOperands& part) { return std::pair{by_rank(*part.a), 1.0f}; });
    clear_rest(ctx, stretch, m);
  }
  std::vector<TileProjection> projections;
  std::vector<FactorLine> columns;
  for (size_t i = 0; i < linears.size(); ++i) {
    columns.clear();
    TileProjection projection;
    for (const Stretch::Place& place : stretch.places) {
      if (static_cast<size_t>(place.part->linear) != i) continue;
      add_columns(by_row(*place.part->b), rank_of(*place.part), columns);
      projection.factors.push_back(factor_of(place, stretch, static_cast<float>(place.part->scale),
                                             du[static_cast<size_t>(place.part - parts.data())]));
    }
    if (columns.empty()) continue;
    const int64_t k = linears[i].weight->shape[0];
    auto* tiles = b.take<bf16>(tiles_size(k, static_cast<int64_t>(columns.size())));
    pack_factor_columns(ctx, columns, k, tiles);
    projection.x = rows_term(*linears[i].y, tiles);
    projections.push_back(std::move(projection));
  }
  WeightTiles weights(ctx, linears, false);
  std::vector<TileSum> sums;
  const auto add_sum = [&](const View& out, bool with_base, bool with_parts) {
    TileSum sum{in, {}, {out.data, out.dtype, in}};
    if (with_parts && stretch.k > 0) sum.terms.push_back(stretch_term(stretch));
    for (const LinearOperands& linear : linears) {
      if (!with_base || !linear.y) continue;
      sum.terms.push_back(rows_term(*linear.y, weights.take(linear)));
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
  std::vector<Stretch> stretches;
  std::vector<const LowRankOperands*> all;
  int64_t a_bytes = 0, b_bytes = 0, bias_bytes = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::vector<const LowRankOperands*> own = parts_of(parts, i);
    all.insert(all.end(), own.begin(), own.end());
    const Stretch& stretch = stretches.emplace_back(layout(own));
    const int64_t outs = linears[i].weight->shape[0];
    a_bytes += Arena::bytes<bf16>(round_up(m, kPanelRows) * stretch.k);
    b_bytes += Arena::bytes<bf16>(tiles_size(stretch.k, outs));
    if (linears[i].bias) bias_bytes += Arena::bytes<float>(outs);
  }
  const int64_t columns_size = tiles_size(in, projection_columns(all));
  Arena a(ctx, CpuState::kFactorA, a_bytes), bias(ctx, CpuState::kWideC, bias_bytes);
  Arena b(ctx, CpuState::kFactorB, b_bytes + Arena::bytes<bf16>(columns_size));
  WeightTiles weights(ctx, linears, true);
  TileProjection projection;
  std::vector<FactorLine> columns;
  std::vector<TileSum> sums;
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOperands& linear = linears[i];
    const int64_t outs = linear.weight->shape[0];
    TileSum sum{outs, {}, {linear.y->data, linear.y->dtype, outs}};
    Stretch& stretch = stretches[i];
    if (stretch.k > 0) {
      stretch.a = a.take<bf16>(round_up(m, kPanelRows) * stretch.k);
      stretch.tiles = b.take<bf16>(tiles_size(stretch.k, outs));
      pack_stretch(ctx, stretch, outs, [](const LowRankOperands& part) {
        return std::pair{by_row(*part.b), static_cast<float>(part.scale)};
      });
      clear_rest(ctx, stretch, m);
      sum.terms.push_back(stretch_term(stretch));
    }
    for (const Stretch::Place& place : stretch.places) {
      add_columns(by_rank(*place.part->a), rank_of(*place.part), columns);
      projection.factors.push_back(factor_of(place, stretch, 1, data_of<float>(place.part->u)));
    }
    if (linear.bias) {
      auto* wide = bias.take<float>(outs);
      convert_rows(nullptr, linear.bias->data, linear.bias->dtype, outs, wide, BALORA_F32, outs, 1,
                   outs);
      sum.out.bias = wide;
    }
    sum.terms.push_back(rows_term(x, weights.take(linear)));
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
  const std::vector<float*> du = backward_inputs(ctx, g, linears, parts, m, in);
  std::vector<Contracted> jobs;
  for (size_t p = 0; p < parts.size(); ++p) {
    if (!parts[p].da) continue;
    if (du[p] && m > 0) {
      jobs.push_back({du[p], 1, parts[p].da, rank_of(parts[p])});
    } else {
      zero(*parts[p].da);
    }
  }
  if (!jobs.empty()) contract_all(ctx, g.x_adapter ? *g.x_adapter : *g.x, jobs, false);
  for (size_t i = 0; i < linears.size(); ++i) {
    jobs.clear();
    for (const LowRankOperands& part : parts) {
      if (static_cast<size_t>(part.linear) != i || !part.db) continue;
      if (linears[i].y && m > 0) {
        jobs.push_back(
            {data_of<float>(part.u), static_cast<float>(part.scale), part.db, rank_of(part)});
      } else {
        zero(*part.db);
      }
    }
    if (!jobs.empty()) contract_all(ctx, *linears[i].y, jobs, true);
  }
}

}  // namespace balora
