// linear_wide.h: matrices of factors for one product each, and the sums.
#include "kernels/cpu/linear/linear_wide.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/linear/kept_factors.h"
#include "kernels/cpu/linear/low_rank.h"
#include "kernels/cpu/linear/low_rank_updates.h"
#include "kernels/cpu/linear/output_scale.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/int8.h"
#include "kernels/cpu/products/product_sum.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/rows.h"
#include "platform/cpu.h"

namespace balora {
namespace {

// The columns of one linear: those of its updates, then a second group for those that are pairs.
struct Block {
  std::vector<LowRankUpdate> updates;
  int64_t first = 0;  // of all columns
  int64_t ranks = 0, paired = 0;

  int64_t columns() const { return ranks + paired; }
};

// The order of a pair's two groups of columns: of the factor that x or dY is multiplied by, where
// it is now, then its change; of the other factor, its change, then where it began. The columns of
// a part alone have where it is now.
enum class Order { kNowThenChange, kChangeThenStart };

// A factor, less another one where that is given.
struct Values {
  const View& factor;
  const View* minus = nullptr;
};

// Calls body(update, values, column) for each group of columns of each update.
template <typename Body>
void for_factors(const Block& block, Order order, Side side, const Body& body) {
  int64_t column = 0, second = block.ranks;
  for (const LowRankUpdate& update : block.updates) {
    const View& now = update.factor(side);
    const View* const start = update.start(side);
    if (!start) {
      body(update, {now}, column);
    } else if (order == Order::kNowThenChange) {
      body(update, {now}, column);
      body(update, {now, start}, second);
    } else {
      body(update, {now, start}, column);
      body(update, {*start}, second);
    }
    column += update.rank();
    if (start) second += update.rank();
  }
}

// `count` scaled values from the element `first` on.
template <typename E>
void copy_scaled(const Values& values, int64_t first, E scale, int64_t count, E* to) {
  const E* const from = data_of<E>(&values.factor) + first;
  const E* const minus = values.minus ? data_of<E>(values.minus) + first : nullptr;
  for (int64_t j = 0; j < count; ++j) to[j] = scale * (minus ? from[j] - minus[j] : from[j]);
}

// A (R,I) of the updates as rows: to (columns,I).
template <typename E>
void write_rows(Context* ctx, const Block& block, Order order, E* to) {
  const auto write = [&](const LowRankUpdate& update, const Values& values, int64_t column) {
    const int64_t in = values.factor.shape[1];
    parallel_for(ctx, update.rank(), 16, [&](int64_t begin, int64_t end) {
      copy_scaled<E>(values, begin * in, E(1), (end - begin) * in, to + (column + begin) * in);
    });
  };
  for_factors(block, order, Side::kA, write);
}

// s B (O,R) of the updates as columns: to (O,columns).
template <typename E>
void write_columns(Context* ctx, const Block& block, Order order, E* to) {
  const int64_t ld = block.columns();
  const auto write = [&](const LowRankUpdate& update, const Values& values, int64_t column) {
    const int64_t rank = update.rank();
    const auto scale = static_cast<E>(update.scale);
    parallel_for(ctx, values.factor.shape[0], 512, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        copy_scaled<E>(values, o * rank, scale, rank, to + o * ld + column);
      }
    });
  };
  for_factors(block, order, Side::kB, write);
}

template <typename E>
View matrix(const E* data, int64_t rows, int64_t cols) {
  View view{};
  view.data = const_cast<E*>(data), view.dtype = kDtypeOfAcc<E>, view.ndim = 2;
  view.shape[0] = rows, view.shape[1] = cols, view.stride[0] = cols, view.stride[1] = 1;
  return view;
}

ProductTerm base_term(const View& x, const View& weight, bool transposed,
                      const Int8Weight* int8 = nullptr) {
  return {x.data, x.dtype, x.shape[1], &weight, transposed, 1, int8};
}

// Whether rows of this type are widened before they are multiplied.
bool is_widened(int32_t dtype) {
  return (dtype == BALORA_BF16 || dtype == BALORA_F16) && !platform::cpu().uses(platform::kBf16);
}

void write_sum(Context* ctx, const View& out, std::span<const ProductTerm> terms) {
  if (terms.empty()) return fill_zero(out);
  sum_products(ctx, {out.shape[0], out.shape[1], terms}, dense_output(out));
}

// Numbers the columns of all linears; returns how many there are.
int64_t lay_out(std::vector<Block>& blocks) {
  int64_t column = 0;
  for (Block& block : blocks) {
    block.first = column;
    for (const LowRankUpdate& update : block.updates) {
      block.ranks += update.rank();
      if (update.has_start()) block.paired += update.rank();
    }
    column += block.columns();
  }
  return column;
}

// The U of each update where it is wanted, from the columns of x [A | dA].
template <typename E>
void copy_u(Context* ctx, const Block& block, const E* columns, int64_t ld, int64_t m) {
  int64_t first = block.first;
  for (const LowRankUpdate& update : block.updates) {
    const int64_t rank = update.rank();
    if (E* const u = data_of<E>(update.u)) {
      parallel_for(ctx, m, 256, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          std::copy_n(columns + i * ld + first, rank, u + i * rank);
        }
      });
    }
    first += rank;
  }
}

// A matrix of factors of updates, kept where it is for few rows (kept_factors.h).
template <typename E, typename Write>
const E* factor_matrix(Context* ctx, std::span<const Block> blocks, Side side, int64_t extent,
                       bool keeps, const Write& write) {
  const View* owner = nullptr;
  KeptKey key;
  int64_t columns = 0, linear = 0;
  for (const Block& block : blocks) {
    columns += block.columns();
    for (const LowRankUpdate& update : block.updates) {
      if (!owner) owner = &update.factor(side);
      if (!keeps) drop_stale(ctx, update.factor(side));
      key.add(update, side, linear);
    }
    ++linear;
  }
  key.form = side == Side::kA ? KeptKey::Form::kWideRows : KeptKey::Form::kWideColumns;
  key.extent = extent;
  if (keeps) {
    const auto bytes = columns * extent * static_cast<int64_t>(sizeof(E));
    const void* const kept =
        kept_matrix(ctx, *owner, key, bytes, [&](void* to) { write(static_cast<E*>(to)); });
    if (kept) return static_cast<const E*>(kept);
  }
  E* const made = workspace<E>(ctx, columns * extent);
  write(made);
  return made;
}

// A of all linears, (columns,in), by which x is multiplied.
template <typename E>
const E* projecting(Context* ctx, std::span<const Block> blocks, int64_t in, bool keeps) {
  return factor_matrix<E>(ctx, blocks, Side::kA, in, keeps, [&](E* to) {
    for (const Block& block : blocks) {
      write_rows(ctx, block, Order::kNowThenChange, to + block.first * in);
    }
  });
}

// s B of a linear, (outs,columns), by which that is multiplied.
template <typename E>
const E* expanding(Context* ctx, const Block& block, int64_t outs, bool keeps) {
  return factor_matrix<E>(ctx, {&block, 1}, Side::kB, outs, keeps,
                          [&](E* to) { write_columns(ctx, block, Order::kChangeThenStart, to); });
}

// A linear in a forward pass: what does not depend on the rows.
struct ForwardLinear {
  const LinearOperands& linear;
  const View& weight;
  const Int8Weight* int8;
  View b{};    // of its low-rank columns
  View sum{};  // y, or what is scaled to it
};

// Rows that are widened at a time, in even parts whose f32 copies are 8 MiB at most, or 256 rows:
// each decodes or widens the weights anew.
int64_t rows_at_once(int64_t m, int64_t in) {
  constexpr int64_t kElements = int64_t{1} << 21;
  return even_share(
      m, std::clamp<int64_t>(kElements / std::max<int64_t>(in, 1) / 64 * 64, 256, 16384));
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
  std::vector<Block> blocks(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) blocks[i].updates = low_rank_updates_of(linears[i]);
  const int64_t count = lay_out(blocks);
  E* const u = count > 0 ? workspace<E>(ctx, m * count) : nullptr;
  std::vector<Projection> projection;
  if (u) {
    const E* const a = projecting<E>(ctx, blocks, in, keeps);
    projection.push_back({{a, kDtypeOfAcc<E>, in, true}, count, {u, kDtypeOfAcc<E>, count}});
  }
  std::vector<ForwardLinear> all;
  bool widens = !by_rows && is_widened(x.dtype) && &x == &input, reads_x = false;
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearOperands& linear = linears[i];
    const View& weight = dense_or_encoded(linear.weight);
    ForwardLinear one{linear, weight, int8_copy(ctx, weight, o.int8)};
    const int64_t columns = blocks[i].columns();
    if (columns > 0) {
      one.b =
          matrix(expanding<E>(ctx, blocks[i], weight.shape[0], keeps), weight.shape[0], columns);
    }
    one.sum = linear.output_scale ? sum_before_scale(ctx, linear) : *linear.y;
    if (one.int8 && m > 0 && !quantised.q) {
      quantised = quantise_rows(ctx, x.data, x.dtype, m, in, nullptr, one.int8->rotation());
    }
    reads_x = reads_x || !one.int8 || linear.weight_change;
    all.push_back(one);
  }
  widens = widens && reads_x;
  if (!widens) thin_products(ctx, input, projection, {}, by_rows);
  const int64_t height = widens ? rows_at_once(m, in) : m;
  const Scratch<float> left(ctx, widens ? height * in : 0);
  for (int64_t first = 0; first < m; first += height) {
    const int64_t rows = std::min(height, m - first);
    View some = rows_of(x, first, rows), some_input = rows_of(input, first, rows);
    if (widens) {
      float* const wide = left.data();
      std::vector<Projection> own = projection;
      for (Projection& each : own) {
        each.out.data = offset_by(each.out.data, first * each.out.ld, each.out.dtype);
      }
      widen_and_project(ctx, some, wide, own);
      some = some_input = matrix(wide, rows, in);
    }
    for (size_t i = 0; i < all.size(); ++i) {
      const ForwardLinear& one = all[i];
      std::vector<ProductTerm> terms;
      if (blocks[i].columns() > 0) {
        terms.push_back({u + first * count + blocks[i].first, kDtypeOfAcc<E>, count, &one.b, true});
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
  for (size_t i = 0; i < all.size(); ++i) {
    copy_u(ctx, blocks[i], u, count, m);
    if (all[i].linear.output_scale) apply_output_scale(ctx, all[i].linear, all[i].sum);
  }
}

// The thin products of dY: dU of every update whose da or whose share of an input's gradient is
// wanted, `count` columns, and every db.
template <typename E>
E* output_products(Context* ctx, std::span<const LinearOperands> linears,
                   std::span<const Block> blocks, int64_t m, int64_t count) {
  E* const du = count > 0 ? workspace<E>(ctx, m * count) : nullptr;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (!linears[i].y) continue;
    const int64_t columns = blocks[i].columns();
    std::vector<Projection> projection;
    if (columns > 0) {
      E* const b = workspace<E>(ctx, dense_or_encoded(linears[i].weight).shape[0] * columns);
      write_columns(ctx, blocks[i], Order::kNowThenChange, b);
      projection.push_back(
          {{b, kDtypeOfAcc<E>, columns}, columns, {du + blocks[i].first, kDtypeOfAcc<E>, count}});
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
  const int64_t in = dense_or_encoded(linears[0].weight).shape[1];
  int64_t m = 0;
  for (const LinearOperands& linear : linears) m = linear.y ? linear.y->shape[0] : m;
  std::vector<Block> blocks(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    if (!linears[i].y) continue;
    for (LowRankUpdate& update : low_rank_updates_of(linears[i])) {
      if (!low_rank_dx) update.start_a = update.start_b = nullptr;
      if (low_rank_dx || update.da) blocks[i].updates.push_back(update);
    }
  }
  const int64_t count = lay_out(blocks);
  for (const LinearOperands& linear : linears) {
    for (const LowRankOperands& part : parts_of(linear)) {
      if (part.da && !linear.y) fill_zero(*part.da);
      if (part.db && !linear.y) fill_zero(*part.db);
    }
  }
  E* const du = output_products<E>(ctx, linears, blocks, m, count);
  std::vector<Contraction> gradients;
  for (const Block& block : blocks) {
    int64_t column = block.first;
    for (const LowRankUpdate& update : block.updates) {
      if (update.da) gradients.push_back({{du + column, count, update.rank()}, 1, update.da});
      column += update.rank();
    }
  }
  if (!gradients.empty()) thin_products(ctx, g.x_adapter ? *g.x_adapter : *g.x, {}, gradients);
  std::vector<ProductTerm> base, low_rank;
  View a{};
  if (low_rank_dx && count > 0) {
    a = matrix(workspace<E>(ctx, count * in), count, in);
    for (const Block& block : blocks) {
      write_rows(ctx, block, Order::kChangeThenStart, data_of<E>(&a) + block.first * in);
    }
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
