// Attention with relative positions, forward: scores of a tile of queries against the keys of its
// segment, softmax, product with the values. No more than a tile of scores exists a thread; what
// the backward needs is each row's log-sum-exp.
#include "kernels/cpu/attention/relative_scores.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora::relative {
namespace {

template <typename T, typename E>
class Forward {
 public:
  using A = Acc<E>;

  Forward(Arena& arena, const Relative& r, const Extents& e, const View* out, const View* lse)
      : scores_(arena, r, e),
        p_(arena, kTile, e.padded_keys()),
        v_(r.v),
        out_(out),
        lse_(data_of<A>(lse)),
        heads_(r.q->shape[1]),
        size_(e.padded_size()) {
    values_ = arena.take<E>(e.padded_keys() * size_);
    sums_ = arena.take<A>(kTile * size_);
  }

  void take_head(int64_t head) {
    head_ = head;
    scores_.take_head(head);
  }

  void run(const Pair& pair) {
    clear(pair.queries.begin + pair.seeing(), pair.queries.stop);
    if (pair.seeing() == 0) return;
    scores_.take_keys(pair);
    const int64_t n = scores_.padded_keys();
    core_of<T, E>().rows_right(v_.source(pair.keys.begin, head_, pair.keys.rows), values_, n,
                               size_);
    for (int64_t first = 0; first < pair.queries.rows; first += kTile) {
      const int64_t queries = scores_.compute(first), m = tile_padded(queries);
      const int64_t met = scores_.met_keys(first), row = pair.queries.begin + first;
      for (int64_t i = 0; i < queries; ++i) {
        lse_[(row + i) * heads_ + head_] =
            RowLoops<A>::softmax(scores_.seen(first + i), met, scores_.row(i));
      }
      std::fill(scores_.row(queries), scores_.row(m), A(0));
      p_.take(scores_.scores(), n, m, met);
      p_.multiply(values_, size_, sums_, false);
      core_of<T, E>().unpack_rows(sums_, size_, out_.at(row, head_), out_.stride, queries,
                                  out_.size);
    }
  }

 private:
  // Rows without a key to see, padding among them.
  void clear(int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      std::fill(out_.at(row, head_), out_.at(row, head_) + out_.size, T{});
      lse_[row * heads_ + head_] = A(0);
    }
  }

  Scores<T, E> scores_;
  LeftTile<E> p_;
  Heads<T> v_, out_;
  A* lse_;
  int64_t heads_, size_, head_ = 0;
  E* values_;
  A* sums_;
};

template <typename T, typename E>
void forward(Context* ctx, const Relative& r, const View* out, const View* lse) {
  const std::vector<Pair> pairs = read_pairs(r);
  const Extents extents(r, pairs);
  Arena count;
  Forward<T, E>(count, r, extents, out, lse);
  const int64_t heads = r.q->shape[1], segments = static_cast<int64_t>(pairs.size());
  const int64_t items = heads * segments, width = parallel_width(ctx, items, 1);
  char* memory = workspace<char>(ctx, count.used() * width);
  parallel_for(ctx, width, 1, [&](int64_t begin, int64_t end) {
    const TileScope scope;
    for (int64_t thread = begin; thread < end; ++thread) {
      Arena arena(memory + thread * count.used());
      Forward<T, E> run(arena, r, extents, out, lse);
      const int64_t from = items * thread / width, to = items * (thread + 1) / width;
      for (int64_t item = from; item < to; ++item) {
        if (item == from || item % segments == 0) run.take_head(item / segments);
        run.run(pairs[static_cast<size_t>(item % segments)]);
      }
    }
  });
}

}  // namespace
}  // namespace balora::relative

namespace balora {

int32_t relative_attention_forward_kernel(Context* ctx,
                                          const balora_relative_attention_forward& o) {
  attention::dispatch_tiles(o.r->q->dtype, [&]<typename T, typename E>() {
    relative::forward<T, E>(ctx, *o.r, o.out, o.lse);
  });
  return 0;
}

}  // namespace balora
