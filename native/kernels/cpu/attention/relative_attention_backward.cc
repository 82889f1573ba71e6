// Attention with relative positions, backward: probabilities come back from the scores and the
// saved log-sum-exp.
//   delta = rowsum(dout * out)
//   dp = dout v^T
//   ds = p (dp - delta)
//   dv = p^T dout
//   dbias = sum of ds by relative position
// and, with ds multiplied by scale,
//   dq = ds k + (ds by position) position_k
//   dk = ds^T q + (ds^T by position) position_q
//   dposition_k = (ds by position)^T q
//   dposition_q = (ds^T by position)^T k
// A thread owns heads and walks their segments in order, so every sum is its own and a thread count
// never changes the bits.
#include "kernels/cpu/attention/relative_scores.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora::relative {
namespace {

template <typename T>
struct Operands {
  Heads<T> dout, out, q, k, v, position_k, position_q;
  Heads<T> dq, dk, dv, dposition_k, dposition_q;
  T* dbias;           // (R,H)
  const Acc<T>* lse;  // (N,H)
  int64_t heads;

  Operands(const Relative& r, const View* dy, const View* y, const View* l,
           const RelativeGradients& g)
      : dout(dy),
        out(y),
        q(r.q),
        k(r.k),
        v(r.v),
        position_k(r.position_k),
        position_q(r.position_q),
        dq(g.q),
        dk(g.k),
        dv(g.v),
        dposition_k(g.position_k),
        dposition_q(g.position_q),
        dbias(data_of<T>(g.bias)),
        lse(data_of<Acc<T>>(l)),
        heads(r.q->shape[1]) {}
};

template <typename T, typename E>
class Backward {
 public:
  using A = Acc<E>;

  Backward(Arena& arena, const Relative& r, const Extents& e, const Operands<T>& operands)
      : scores_(arena, r, e),
        p_left_(arena, kTile, e.padded_keys()),
        ds_left_(arena, kTile, e.padded_keys()),
        position_left_(arena, kTile, e.padded_positions()),
        o_(operands),
        e_(e),
        scale_(static_cast<A>(r.scale)) {
    const int64_t n = e.padded_keys(), d = e.padded_size(), p = e.padded_positions();
    for (E** rows : {&values_transposed_, &keys_}) *rows = arena.take<E>(n * d);
    for (A** rows : {&dk_, &dv_}) *rows = arena.take<A>(n * d);
    for (E** tile : {&dout_, &q_, &dout_left_}) *tile = arena.take<E>(kTile * d);
    dq_ = arena.take<A>(kTile * d);
    dp_ = arena.take<A>(kTile * n);
    delta_ = arena.take<A>(kTile);
    dbias_ = arena.take<A>(e.relative);
    for (E** table : {&position_k_, &position_q_}) *table = arena.take<E>(p * d);
    for (A** table : {&dposition_k_, &dposition_q_}) *table = arena.take<A>(p * d);
    by_position_ = arena.take<A>(kTile * p);
    key_by_position_ = arena.take<A>(n * p);
  }

  void take_head(int64_t head) {
    head_ = head;
    scores_.take_head(head);
    const int64_t d = e_.padded_size(), p = e_.padded_positions();
    std::fill(dbias_, dbias_ + e_.relative, A(0));
    std::fill(dposition_k_, dposition_k_ + p * d, A(0));
    std::fill(dposition_q_, dposition_q_ + p * d, A(0));
    if (o_.position_k.data) {
      core_of<T, E>().rows_right(o_.position_k.source(0, head, e_.positions), position_k_, p, d);
    }
    if (o_.position_q.data) {
      core_of<T, E>().rows_right(o_.position_q.source(0, head, e_.positions), position_q_, p, d);
    }
  }

  void run(const Pair& pair) {
    clear(o_.dq, pair.queries.begin + pair.seeing(), pair.queries.stop);
    for (const Heads<T>& rows : {o_.dk, o_.dv}) {
      clear(rows, pair.keys.begin + pair.seen(), pair.keys.stop);
    }
    if (pair.seeing() == 0) return;
    take_keys(pair);
    for (int64_t first = 0; first < pair.queries.rows; first += kTile) query_tile(pair, first);
    write_keys(pair);
  }

  void write_head() {
    const int64_t d = e_.padded_size();
    if (o_.dposition_k.data) {
      core_of<T, E>().unpack_rows(dposition_k_, d, o_.dposition_k.at(0, head_),
                                  o_.dposition_k.stride, e_.positions, e_.size);
    }
    if (o_.dposition_q.data) {
      core_of<T, E>().unpack_rows(dposition_q_, d, o_.dposition_q.at(0, head_),
                                  o_.dposition_q.stride, e_.positions, e_.size);
    }
    if (!o_.dbias) return;
    for (int64_t i = 0; i < e_.relative; ++i) {
      o_.dbias[i * o_.heads + head_] = store<T>(dbias_[i]);
    }
  }

 private:
  void clear(const Heads<T>& rows, int64_t first, int64_t last) const {
    for (int64_t row = first; row < last; ++row) {
      std::fill(rows.at(row, head_), rows.at(row, head_) + rows.size, T{});
    }
  }

  void take_keys(const Pair& pair) {
    scores_.take_keys(pair);
    const int64_t n = scores_.padded_keys(), d = e_.padded_size(), p = e_.padded_positions();
    const int64_t rows = pair.keys.rows;
    core_of<T, E>().columns_right(o_.v.source(pair.keys.begin, head_, rows), values_transposed_, n,
                                  d);
    core_of<T, E>().rows_right(o_.k.source(pair.keys.begin, head_, rows), keys_, n, d);
    std::fill(dk_, dk_ + n * d, A(0));
    std::fill(dv_, dv_ + n * d, A(0));
    if (!o_.position_q.data) return;
    for (int64_t first = 0; first < rows; first += kTile) {
      clear_positions(scores_.met_by_keys(first), std::min(kTile, n - first),
                      key_by_position_ + first * p);
    }
  }

  void query_tile(const Pair& pair, int64_t first) {
    const int64_t queries = scores_.compute(first), m = tile_padded(queries);
    const int64_t n = scores_.padded_keys(), met = scores_.met_keys(first), d = e_.padded_size();
    const int64_t row = pair.queries.begin + first;
    const Source<T> dout = o_.dout.source(row, head_, queries);
    core_of<T, E>().rows_left(dout, dout_left_, m, d);
    core_of<T, E>().rows_right(dout, dout_, m, d);
    core_of<T, E>().rows_right(o_.q.source(row, head_, queries), q_, m, d);
    core_of<T, E>().row_dots(dout, o_.out.source(row, head_, queries), delta_);
    tile_gemm({m, met, d}, dout_left_, d, values_transposed_, n, dp_, n, false);
    score_gradients(first, row, queries);
    for (int64_t i = queries; i < m; ++i) {
      std::fill(scores_.row(i), scores_.row(i) + met, A(0));
      std::fill(dp_ + i * n, dp_ + i * n + met, A(0));
    }
    p_left_.take(scores_.scores(), n, m, met);
    p_left_.multiply_turned(dout_, d, dv_);
    ds_left_.take(dp_, n, m, met);
    ds_left_.multiply_turned(q_, d, dk_);
    ds_left_.multiply(keys_, d, dq_, false);
    if (o_.position_k.data) to_positions(first, queries);
    core_of<T, E>().unpack_rows(dq_, d, o_.dq.at(row, head_), o_.dq.stride, queries, e_.size);
  }

  // dp becomes ds * scale; what the keys and the bias get of it by position is added up.
  void score_gradients(int64_t first, int64_t row, int64_t queries) {
    const int64_t n = scores_.padded_keys();
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t t = first + i;
      RowLoops<A>::gradient({.lse = o_.lse[(row + i) * o_.heads + head_],
                             .delta = delta_[i],
                             .scale = scale_,
                             .keys = scores_.seen(t),
                             .padded = scores_.met_keys(first),
                             .scores = scores_.row(i),
                             .dp = dp_ + i * n,
                             .dbias = o_.dbias ? dbias_ + (scores_.reach() - t) : nullptr});
    }
    if (!o_.position_q.data) return;
    sum_of_keys(scores_.position_tile(first, queries), dp_, n, key_by_position_);
  }

  // Sums by position become zeros, in `rows` rows, where they are met.
  void clear_positions(const Positions& met, int64_t rows, A* sums) const {
    const int64_t p = e_.padded_positions();
    for (int64_t i = 0; i < rows; ++i) {
      std::fill(sums + i * p + met.first, sums + i * p + met.first + met.count, A(0));
    }
  }

  void to_positions(int64_t first, int64_t queries) {
    const int64_t m = tile_padded(queries), d = e_.padded_size(), p = e_.padded_positions();
    const Positions met = scores_.met_by_queries(first, queries);
    clear_positions(met, m, by_position_);
    sum_of_queries(scores_.position_tile(first, queries), dp_, scores_.padded_keys(), by_position_);
    position_left_.take(by_position_ + met.first, p, m, met.count);
    position_left_.multiply(position_k_ + met.first * d, d, dq_, true);
    position_left_.multiply_turned(q_, d, dposition_k_ + met.first * d);
  }

  // The same of a tile of keys.
  void from_positions(int64_t first) {
    const int64_t d = e_.padded_size(), p = e_.padded_positions();
    const int64_t m = std::min(kTile, scores_.padded_keys() - first);
    const Positions met = scores_.met_by_keys(first);
    position_left_.take(key_by_position_ + first * p + met.first, p, m, met.count);
    position_left_.multiply(position_q_ + met.first * d, d, dk_ + first * d, true);
    position_left_.multiply_turned(keys_ + first * d, d, dposition_q_ + met.first * d);
  }

  void write_keys(const Pair& pair) {
    const int64_t d = e_.padded_size(), row = pair.keys.begin;
    if (o_.position_q.data) {
      for (int64_t first = 0; first < pair.keys.rows; first += kTile) from_positions(first);
    }
    core_of<T, E>().unpack_rows(dk_, d, o_.dk.at(row, head_), o_.dk.stride, pair.keys.rows,
                                e_.size);
    core_of<T, E>().unpack_rows(dv_, d, o_.dv.at(row, head_), o_.dv.stride, pair.keys.rows,
                                e_.size);
  }

  Scores<T, E> scores_;
  LeftTile<E> p_left_, ds_left_, position_left_;
  Operands<T> o_;
  Extents e_;
  A scale_;
  int64_t head_ = 0;
  E *values_transposed_, *keys_, *dout_, *q_, *dout_left_, *position_k_, *position_q_;
  A *dk_, *dv_, *dq_, *dp_, *delta_, *dbias_, *dposition_k_, *dposition_q_;
  A *by_position_, *key_by_position_;
};

template <typename T, typename E>
void backward(Context* ctx, const Relative& r, const Operands<T>& operands) {
  const std::vector<Pair> pairs = read_pairs(r);
  const Extents extents(r, pairs);
  Arena count;
  Backward<T, E>(count, r, extents, operands);
  const int64_t heads = r.q->shape[1], width = parallel_width(ctx, heads, 1);
  char* memory = workspace<char>(ctx, count.used() * width);
  parallel_for(ctx, width, 1, [&](int64_t begin, int64_t end) {
    const TileScope scope;
    for (int64_t thread = begin; thread < end; ++thread) {
      Arena arena(memory + thread * count.used());
      Backward<T, E> run(arena, r, extents, operands);
      for (int64_t h = heads * thread / width; h < heads * (thread + 1) / width; ++h) {
        run.take_head(h);
        for (const Pair& pair : pairs) run.run(pair);
        run.write_head();
      }
    }
  });
}

}  // namespace
}  // namespace balora::relative

namespace balora {

int32_t relative_attention_backward_kernel(Context* ctx,
                                           const balora_relative_attention_backward& o) {
  attention::dispatch_tiles(o.r->q->dtype, [&]<typename T, typename E>() {
    relative::backward<T, E>(ctx, *o.r,
                             relative::Operands<T>(*o.r, o.dout, o.out, o.lse, *o.gradients));
  });
  return 0;
}

}  // namespace balora
