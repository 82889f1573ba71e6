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
#include "kernels/cpu/products/transpose16.h"
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

// x (m,n) -> out (n,m), both multiples of 16
void transpose(const float* x, int64_t m, int64_t n, float* out) {
  transpose_floats(x, m, n, out);
}
void transpose(const double* x, int64_t m, int64_t n, double* out) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) out[j * m + i] = x[i * n + j];
  }
}

template <typename T>
class Backward {
 public:
  using A = Acc<T>;

  Backward(Arena& arena, const Relative& r, const Extents& e, const Operands<T>& operands)
      : scores_(arena, r, e), o_(operands), e_(e), scale_(static_cast<A>(r.scale)) {
    const int64_t n = e.padded_keys(), d = e.padded_size(), p = e.padded_positions();
    for (A** rows : {&values_transposed_, &keys_, &dk_, &dv_}) *rows = arena.take<A>(n * d);
    for (A** tile : {&dout_, &q_, &dout_left_, &dq_}) *tile = arena.take<A>(kTile * d);
    dp_ = arena.take<A>(kTile * n);
    transposed_ = arena.take<A>(r.position_q ? kTile * n : 0);
    delta_ = arena.take<A>(kTile);
    dbias_ = arena.take<A>(e.relative);
    for (A** table : {&position_k_, &position_q_, &dposition_k_, &dposition_q_}) {
      *table = arena.take<A>(p * d);
    }
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
      Packing<T, A>::rows_right(o_.position_k.source(0, head, e_.positions), position_k_, p, d);
    }
    if (o_.position_q.data) {
      Packing<T, A>::rows_right(o_.position_q.source(0, head, e_.positions), position_q_, p, d);
    }
  }

  void run(const Pair& pair) {
    const bool sees = pair.keys.rows > 0 && pair.queries.rows > 0;
    clear(o_.dq, sees ? pair.queries.begin + pair.queries.rows : pair.queries.begin,
          pair.queries.stop);
    for (const Heads<T>& rows : {o_.dk, o_.dv}) {
      clear(rows, sees ? pair.keys.begin + pair.keys.rows : pair.keys.begin, pair.keys.stop);
    }
    if (!sees) return;
    take_keys(pair);
    for (int64_t first = 0; first < pair.queries.rows; first += kTile) query_tile(pair, first);
    write_keys(pair);
  }

  void write_head() {
    const int64_t d = e_.padded_size();
    if (o_.dposition_k.data) {
      Unpacking<T>::rows(dposition_k_, d, o_.dposition_k.at(0, head_), o_.dposition_k.stride,
                         e_.positions, e_.size);
    }
    if (o_.dposition_q.data) {
      Unpacking<T>::rows(dposition_q_, d, o_.dposition_q.at(0, head_), o_.dposition_q.stride,
                         e_.positions, e_.size);
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
    Packing<T, A>::columns_right(o_.v.source(pair.keys.begin, head_, rows), values_transposed_, n,
                                 d);
    Packing<T, A>::rows_right(o_.k.source(pair.keys.begin, head_, rows), keys_, n, d);
    std::fill(dk_, dk_ + n * d, A(0));
    std::fill(dv_, dv_ + n * d, A(0));
    std::fill(key_by_position_, key_by_position_ + n * p, A(0));
  }

  void query_tile(const Pair& pair, int64_t first) {
    const int64_t queries = scores_.compute(first), m = tile_padded(queries);
    const int64_t n = scores_.padded_keys(), d = e_.padded_size();
    const int64_t row = pair.queries.begin + first;
    const Source<T> dout = o_.dout.source(row, head_, queries);
    Packing<T, A>::rows_left(dout, dout_left_, m, d);
    Packing<T, A>::rows_right(dout, dout_, m, d);
    Packing<T, A>::rows_right(o_.q.source(row, head_, queries), q_, m, d);
    Unpacking<T>::row_dots(dout, o_.out.source(row, head_, queries), delta_);
    tile_gemm({m, n, d}, dout_left_, d, values_transposed_, dp_, n, false);
    score_gradients(first, row, queries);
    std::fill(scores_.row(queries), scores_.row(m), A(0));
    std::fill(dp_ + queries * n, dp_ + m * n, A(0));
    tile_gemm_columns({n, d, m}, scores_.scores(), n, dout_, d, dv_, d, true);
    tile_gemm_columns({n, d, m}, dp_, n, q_, d, dk_, d, true);
    if (o_.position_q.data) {
      transpose(dp_, m, n, transposed_);
      sum_from_key(scores_.key_tile(first, queries), transposed_, m, key_by_position_);
    }
    tile_gemm({m, d, n}, dp_, n, keys_, dq_, d, false);
    if (o_.position_k.data) to_positions(m);
    Unpacking<T>::rows(dq_, d, o_.dq.at(row, head_), o_.dq.stride, queries, e_.size);
  }

  // dp becomes ds * scale; what relative positions get of ds is added up.
  void score_gradients(int64_t first, int64_t row, int64_t queries) {
    const int64_t n = scores_.padded_keys(), p = e_.padded_positions();
    std::fill(by_position_, by_position_ + tile_padded(queries) * p, A(0));
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t t = first + i, keys = scores_.seen(t);
      A* ds = dp_ + i * n;
      RowLoops<A>::gradient(o_.lse[(row + i) * o_.heads + head_], delta_[i], keys, n,
                            scores_.row(i), ds);
      const TermGradientRow<A> terms{o_.dbias ? dbias_ + (scores_.reach() - t) : nullptr,
                                     scores_.index_of(t),
                                     o_.position_k.data ? by_position_ + i * p : nullptr};
      scatter_terms(terms, scale_, keys, ds);
      for (int64_t j = 0; j < keys; ++j) ds[j] *= scale_;
    }
  }

  void to_positions(int64_t m) {
    const int64_t d = e_.padded_size(), p = e_.padded_positions();
    tile_gemm({m, d, p}, by_position_, p, position_k_, dq_, d, true);
    tile_gemm_columns({p, d, m}, by_position_, p, q_, d, dposition_k_, d, true);
  }

  void write_keys(const Pair& pair) {
    const int64_t n = scores_.padded_keys(), d = e_.padded_size(), p = e_.padded_positions();
    if (o_.position_q.data) {
      tile_gemm({n, d, p}, key_by_position_, p, position_q_, dk_, d, true);
      tile_gemm_columns({p, d, n}, key_by_position_, p, keys_, d, dposition_q_, d, true);
    }
    const int64_t row = pair.keys.begin;
    Unpacking<T>::rows(dk_, d, o_.dk.at(row, head_), o_.dk.stride, pair.keys.rows, e_.size);
    Unpacking<T>::rows(dv_, d, o_.dv.at(row, head_), o_.dv.stride, pair.keys.rows, e_.size);
  }

  Scores<T> scores_;
  Operands<T> o_;
  Extents e_;
  A scale_;
  int64_t head_ = 0;
  A *values_transposed_, *keys_, *dk_, *dv_, *dout_, *q_, *dout_left_, *dq_, *dp_, *transposed_,
      *delta_;
  A *dbias_, *position_k_, *position_q_, *dposition_k_, *dposition_q_;
  A *by_position_, *key_by_position_;
};

template <typename T>
void backward(Context* ctx, const Relative& r, const Operands<T>& operands) {
  const std::vector<Pair> pairs = read_pairs(r);
  const Extents extents(r, pairs);
  Arena count;
  Backward<T>(count, r, extents, operands);
  const int64_t heads = r.q->shape[1], width = parallel_width(ctx, heads, 1);
  char* memory = workspace<char>(ctx, count.used() * width);
  parallel_for(ctx, width, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      Arena arena(memory + thread * count.used());
      Backward<T> run(arena, r, extents, operands);
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
  dispatch_float(o.r->q->dtype, [&]<typename T>() {
    relative::backward<T>(ctx, *o.r,
                          relative::Operands<T>(*o.r, o.dout, o.out, o.lse, *o.gradients));
  });
  return 0;
}

}  // namespace balora
