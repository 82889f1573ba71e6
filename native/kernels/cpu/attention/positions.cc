#include "kernels/cpu/attention/positions.h"

#include <algorithm>

#include "kernels/cpu/runtime/levels.h"
#include "kernels/shared/messages.h"

namespace balora::attention {
namespace {

// ---- blocks of scores ---------------------------------------------------------------------------

constexpr int64_t kBlock = kPositionBlock;

// Where row i and column j meet in the table's products with rows, or with columns.
template <bool kOfRows>
int64_t met_at(const PositionTile& t, int64_t i, int64_t j) {
  return (kOfRows ? i : j) * t.stride + t.index[j - i];
}

template <typename A, bool kOfRows>
void add_of(const PositionTile& t, const A* of_side, A* scores, int64_t ld) {
  for (int64_t i = 0; i < t.rows; ++i) {
    for (int64_t j = 0; j < t.columns; ++j) scores[i * ld + j] += of_side[met_at<kOfRows>(t, i, j)];
  }
}

template <typename A, bool kOfRows>
void sum_of(const PositionTile& t, const A* ds, int64_t ld, A* of_side) {
  for (int64_t i = 0; i < t.rows; ++i) {
    for (int64_t j = 0; j < t.columns; ++j) of_side[met_at<kOfRows>(t, i, j)] += ds[i * ld + j];
  }
}

template <typename A>
constexpr PositionCore<A> kAnyPositions = {add_of<A, true>, add_of<A, false>, sum_of<A, true>,
                                           sum_of<A, false>};

constexpr Core<const PositionCore<float>*> kPositions[] = {
    BALORA_X86("avx512", platform::kAvx512, &x86::avx512_positions),
    {"any", 0, &kAnyPositions<float>},
};

template <typename A>
const PositionCore<A>& positions_core(const PositionTile& block) {
  if constexpr (std::is_same_v<A, float>) {
    static const PositionCore<float>& chosen = *first_core(kPositions).run;
    if (block.rows == kBlock && block.columns == kBlock) return chosen;
  }
  return kAnyPositions<A>;
}

// body(core, block, i, j) for the blocks of a tile, from row i and column j on.
template <typename A, typename Body>
void for_position_blocks(const PositionTile& t, const Body& body) {
  for (int64_t j = 0; j < t.columns; j += kBlock) {
    for (int64_t i = 0; i < t.rows; i += kBlock) {
      const int64_t rows = std::min(kBlock, t.rows - i);
      const int64_t columns = std::min(kBlock, t.columns - j);
      const PositionTile block{t.index + (j - i), rows, columns, t.stride};
      body(positions_core<A>(block), block, i, j);
    }
  }
}

// A block with the bias, of which row i begins at bias - i.
template <typename A>
BALORA_INLINE void add_bias(const A* bias, A scale, int64_t rows, int64_t columns, A* scores,
                            int64_t ld) {
  for (int64_t i = 0; i < rows; ++i, --bias, scores += ld) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) scores[j] = scale * scores[j] + bias[j];
  }
}

template <typename A>
BALORA_INLINE void sum_bias(const A* ds, int64_t ld, int64_t rows, int64_t columns, A* dbias) {
  for (int64_t i = 0; i < rows; ++i, --dbias, ds += ld) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) dbias[j] += ds[j];
  }
}

void check_index(const Relative& r) {
  const View* table = r.position_k ? r.position_k : r.position_q;
  if (!table) return;
  const auto* index = data_of<int32_t>(r.index);
  for (int64_t i = 0; i < r.index->shape[0]; ++i) {
    if (index[i] >= 0 && index[i] < table->shape[0]) continue;
    throw ArgumentError(messages::position_index(i, index[i], table->shape[0]));
  }
}

// Rows of a view, or 0.
int64_t rows_of(const View* view) {
  return view ? view->shape[0] : 0;
}

}  // namespace

std::vector<Segment> read_segments(const Relative& r) {
  check_index(r);
  const auto queries = read_segments(r.cu_queries, r.query_lengths, r.q->shape[0]);
  auto segments = read_segments(r.cu_keys, r.key_lengths, r.k->shape[0]);
  const View* table = r.bias ? r.bias : r.index;
  for (size_t b = 0; b < segments.size(); ++b) {
    const Segment& own = queries[b];
    Segment& s = segments[b];
    const int64_t longest = std::max(own.rows, s.rows);
    if (table && 2 * longest - 1 > table->shape[0]) {
      throw ArgumentError(
          messages::segment_reach(static_cast<int64_t>(b), longest, table->shape[0]));
    }
    // Rows take part where the other side has some.
    s.queries = s.rows > 0 ? own.rows : 0;
    s.rows = own.rows > 0 ? s.rows : 0;
    s.query_begin = own.begin, s.query_stop = own.stop;
  }
  if (segments.empty()) segments.push_back({0, 0, 0});  // of which the tables' gradients are zeros
  return segments;
}

template <typename T, typename E>
Positions<T, E>::Table::Table(Arena& arena, const View* of, const RelativeGradients* wanted,
                              const View* gradient, int64_t rows, int64_t size)
    : values(of), gradient(gradient) {
  const int64_t p = tile_padded(rows_of(of)), back = wanted ? p : 0;
  columns = arena.take<E>(p * size);
  this->rows = arena.take<E>(back * size);
  products = arena.take<A>(rows * p);
  ds = arena.take<A>(rows * back);
  total = arena.take<A>(back * size);
}

template <typename T, typename E>
Positions<T, E>::Positions(Arena& arena, const Geometry& g, const Relative& r,
                           const RelativeGradients* wanted, int64_t longest)
    : r_(r),
      g_(g),
      wanted_(wanted),
      by_keys_(!wanted || !kQueriesByKeys<E>),
      relative_(std::max(rows_of(r.bias), rows_of(r.index))),
      p_(tile_padded(std::max(rows_of(r.position_k), rows_of(r.position_q)))),
      d_(g.padded()),
      k_(arena, r.position_k, wanted, wanted ? wanted->position_k : nullptr, kTile, d_),
      q_(arena, r.position_q, wanted, wanted ? wanted->position_q : nullptr, tile_padded(longest),
         d_) {
  index_ = arena.take<int32_t>(relative_);
  bias_ = arena.take<A>(r.bias ? relative_ : 0);
  dbias_ = arena.take<A>(wanted && r.bias ? relative_ : 0);
  packed_ = arena.take<E>(kTile * d_);
  const int64_t copied = wanted && !std::is_same_v<E, A> ? kTile * p_ : 0;
  rounded_ = arena.take<E>(copied);
  turned_ = arena.take<E>(copied);
}

template <typename T, typename E>
void Positions<T, E>::take_head(int64_t head) {
  if (head == head_) return;
  head_ = head;
  for (int64_t i = 0; i < relative_; ++i) {
    if (r_.index) index_[place(i)] = data_of<int32_t>(r_.index)[i];
    if (r_.bias) bias_[place(i)] = load(data_of<T>(r_.bias)[i * g_.heads + head]);
  }
  const auto& core = core_of<T, E>();
  for (const Table* table : {&k_, &q_}) {
    if (!table->values.data) continue;
    const int64_t rows = rows_of(table == &k_ ? r_.position_k : r_.position_q);
    const Source<T> source = table->values.source(0, head, rows);
    core.columns_right(source, table->columns, p_, d_);
    // The queries that position_k is multiplied with have their scale already.
    if (table == &q_) scale_packed(g_, table->columns, p_ * d_);
    if (!wanted_) continue;
    const bool turned = table == &k_ && !kQueriesByKeys<E>;
    (turned ? core.columns_left : core.rows_right)(source, table->rows, p_, d_);
    scale_packed(g_, table->rows, p_ * d_);
    std::fill_n(table->total, p_ * d_, A(0));
  }
  if (wanted_ && r_.bias) std::fill_n(dbias_, relative_, A(0));
}

// Where a block's first row and column meet.
template <typename T, typename E>
int64_t Positions<T, E>::start_of(const Block& b) const {
  return place((relative_ - 1) / 2 + b.first_key - b.first_query);
}

// The rows of the tables that a block meets, at least one. Buckets of the distance rise or fall, so
// that a tile meets a part of the tables, and short segments a small one.
template <typename T, typename E>
auto Positions<T, E>::range_of(const Block& b) const -> Range {
  const int32_t* const first = index_ + start_of(b) - ((by_keys_ ? b.keys : b.queries) - 1);
  const auto [low, high] = std::minmax_element(first, first + b.queries + b.keys - 1);
  const int64_t from = *low / kTileUnit * kTileUnit;
  return {from, tile_padded(*high + 1) - from};
}

template <typename T, typename E>
auto Positions<T, E>::sides_of(const Block& b, A* of_queries, A* of_keys) const -> Sides {
  A* const queries = k_.values.data ? of_queries + (b.first_query - first_query_) * p_ : nullptr;
  A* const keys = q_.values.data ? of_keys + b.first_key * p_ : nullptr;
  return by_keys_ ? Sides{keys, queries} : Sides{queries, keys};
}

// Products of packed rows, of `at` on, with their table.
template <typename T, typename E>
void Positions<T, E>::take_rows(const Source<T>& source, const Range& met, Table& table,
                                int64_t at) {
  const int64_t m = tile_padded(source.rows);
  core_of<T, E>().rows_left(source, packed_, m, d_);
  if (&table == &k_) scale_packed(g_, packed_, m * d_);
  tile_gemm({m, met.count, d_}, packed_, d_, table.columns + met.first * kPairWidth<E>, p_,
            table.products + at * p_ + met.first, p_, false);
  if (!wanted_) return;
  for (int64_t i = 0; i < m; ++i) {
    std::fill_n(table.ds + (at + i) * p_ + met.first, met.count, A(0));
  }
}

template <typename T, typename E>
void Positions<T, E>::take_keys(const Segment& segment, const Keys& keys) {
  if (!q_.values.data) return;
  const Source<T> source = Heads<T>(r_.k).source(keys.row, head_, keys.count);
  take_rows(source, range_of({0, segment.queries, keys.first, keys.count}), q_, keys.first);
}

template <typename T, typename E>
void Positions<T, E>::take_queries(const Segment& segment, const Queries& queries,
                                   const TileRange& met) {
  first_query_ = queries.first, queries_ = queries.count();
  if (!k_.values.data) return;
  const int64_t key = met.first * kTile, keys = std::min(segment.rows, met.last * kTile) - key;
  met_ = range_of({first_query_, queries_, key, keys});
  take_rows(Heads<T>(r_.q).source(segment.query(first_query_), head_, queries_), met_, k_, 0);
}

template <typename T, typename E>
void Positions<T, E>::add(const Block& b, A* scores, int64_t ld) const {
  const int64_t rows = by_keys_ ? b.keys : b.queries, columns = by_keys_ ? b.queries : b.keys;
  if (r_.index) {
    const PositionTile tile{index_ + start_of(b), rows, columns, p_};
    const Sides sides = sides_of(b, k_.products, q_.products);
    for_position_blocks<A>(tile, [&](const auto& core, const auto& block, int64_t i, int64_t j) {
      A* const to = scores + i * ld + j;
      if (sides.rows) core.add_of_rows(block, sides.rows + i * p_, to, ld);
      if (sides.columns) core.add_of_columns(block, sides.columns + j * p_, to, ld);
    });
  }
  if (r_.bias) {
    const A scale = static_cast<A>(g_.score_scale);
    at_level<&add_bias<A>>(bias_ + start_of(b), scale, rows, columns, scores, ld);
  }
}

template <typename T, typename E>
void Positions<T, E>::add_gradient(const Block& b, const A* ds, int64_t ld) const {
  const int64_t rows = by_keys_ ? b.keys : b.queries, columns = by_keys_ ? b.queries : b.keys;
  if (r_.index) {
    const PositionTile tile{index_ + start_of(b), rows, columns, p_};
    const Sides sides = sides_of(b, k_.ds, q_.ds);
    for_position_blocks<A>(tile, [&](const auto& core, const auto& block, int64_t i, int64_t j) {
      const A* const from = ds + i * ld + j;
      if (sides.rows) core.sum_of_rows(block, from, ld, sides.rows + i * p_);
      if (sides.columns) core.sum_of_columns(block, from, ld, sides.columns + j * p_);
    });
  }
  if (r_.bias) at_level<&sum_bias<A>>(ds, ld, rows, columns, dbias_ + start_of(b));
}

// Adds to the gradients of m rows and of the table. x is a B operand (m,d), ds begins at row `at`:
//   dx += ds rows
//   total += ds^T x
// `turned`: dx lies as (d,m).
template <typename T, typename E>
void Positions<T, E>::finish_rows(const Table& table, int64_t at, int64_t m, const Range& met,
                                  const E* x, bool turned, A* dx) const {
  const int64_t d = d_, n = met.count;
  const A* const ds = table.ds + at * p_ + met.first;
  const E* const rows = table.rows + met.first * (turned ? 1 : d);
  A* const total = table.total + met.first * d;
  if constexpr (std::is_same_v<E, A>) {
    tile_gemm({m, d, n}, ds, p_, rows, d, dx, d, true);
    tile_gemm_columns({n, d, m}, ds, p_, x, d, total, d, true);
  } else {
    const auto& core = core_of<E, E>();
    core.unpack_rows(ds, p_, rounded_, n, m, n);
    const Source<E> rounded{rounded_, n, m, n};
    if (turned) {
      core.columns_right(rounded, turned_, m, n);
      tile_gemm({d, m, n}, rows, p_, turned_, m, dx, m, true);
    } else {
      tile_gemm({m, d, n}, rounded_, n, rows, d, dx, d, true);
    }
    core.columns_left(rounded, turned_, m, n);
    tile_gemm({n, d, m}, turned_, m, x, d, total, d, true);
  }
}

template <typename T, typename E>
void Positions<T, E>::finish_queries(const E* q, A* dq) const {
  const int64_t m = tile_padded(queries_);
  if (k_.values.data) finish_rows(k_, 0, m, met_, q, !kQueriesByKeys<E>, dq);
  if (g_.score_scale != 1) scale_values(dq, m * d_, g_.score_scale);
}

template <typename T, typename E>
void Positions<T, E>::finish_keys(const Segment& segment, const Keys& keys, A* dk) {
  const int64_t m = tile_padded(keys.count);
  if (q_.values.data) {
    core_of<T, E>().rows_right(Heads<T>(r_.k).source(keys.row, head_, keys.count), packed_, m, d_);
    scale_packed(g_, packed_, m * d_);
    const Range met = range_of({0, segment.queries, keys.first, keys.count});
    finish_rows(q_, keys.first, m, met, packed_, false, dk);
  }
  if (g_.score_scale != 1) scale_values(dk, m * d_, g_.score_scale);
}

template <typename T, typename E>
void Positions<T, E>::write_head() const {
  for (const Table* table : {&k_, &q_}) {
    if (!table->gradient.data) continue;
    if (g_.score_scale != 1) scale_values(table->total, p_ * d_, g_.score_scale);
    const int64_t rows = rows_of(table == &k_ ? r_.position_k : r_.position_q);
    core_of<T, E>().unpack_rows(table->total, d_, table->gradient.at(0, head_),
                                table->gradient.stride, rows, g_.size);
  }
  if (!wanted_->bias) return;
  T* const dbias = data_of<T>(wanted_->bias) + head_;
  for (int64_t i = 0; i < relative_; ++i) dbias[i * g_.heads] = store<T>(dbias_[place(i)]);
}

template class Positions<float, float>;
template class Positions<bf16, bf16>;
template class Positions<bf16, float>;
template class Positions<f16, float>;
template class Positions<double, double>;

}  // namespace balora::attention

namespace balora {
BALORA_IMPLEMENTATIONS(relative_positions, attention::kPositions)
}  // namespace balora
