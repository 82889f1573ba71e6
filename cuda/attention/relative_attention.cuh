// Common parts of the forward and backward of attention with relative positions: the operands
// of a call, the terms that a relative position adds to a score, and the position terms of whole
// heads, q position_k^T and k position_q^T, which scores look up by index. These take N P numbers a
// head, so heads go through a call in chunks that keep them within a bound.
#pragma once
#include "attention/attention_blocks.cuh"

namespace balora::cuda::relative {

using namespace attention;  // NOLINT: the same kernels, one more term

constexpr int64_t kTermBytes = int64_t{256} << 20;  // of the position terms of a chunk of heads

// The rows of one segment that take part; padding follows up to stop.
struct Rows {
  int32_t begin, rows, stop;
};
struct Bounds {
  const int32_t* cu;       // (B+1)
  const int32_t* lengths;  // (B) or null
  int32_t n;
  // Bounds that the plan refused still lead nowhere outside the n rows.
  __device__ Rows segment(int32_t s) const {
    const int32_t begin = min(max(cu[s], 0), n), stop = min(max(cu[s + 1], begin), n);
    return {begin, lengths ? min(max(lengths[s], 0), stop - begin) : stop - begin, stop};
  }
};
inline Bounds bounds_of(const View* cu, const View* lengths, int64_t n) {
  return {data_of<int32_t>(cu), data_of<int32_t>(lengths), narrowed(n, "a number of rows of")};
}

template <typename T>
struct Terms {
  const T* bias;                // (R,H) or null
  const int32_t* index;         // (R) or null
  const Acc<T>* to_position;    // (heads of the chunk, N, P) or null
  const Acc<T>* from_key;       // (heads of the chunk, M, P) or null
  int32_t relative, positions;  // R, P

  // Place of relative position key - query, and its row of the position tables; never outside.
  __device__ int32_t place(int32_t query, int32_t key) const {
    return min(max(key - query + (relative - 1) / 2, 0), relative - 1);
  }
  __device__ int32_t position(int32_t place) const {
    return min(max(index[place], 0), positions - 1);
  }
};

template <typename T>
struct Operands {
  Heads<const T> q, k, v, position_k, position_q;
  Bounds queries, keys;
  Terms<T> terms;
  int32_t all_heads, head, heads;  // H, and of the chunk the first and how many
  int32_t size, causal;
  Acc<T> scale;

  __device__ bool sees(int32_t query, int32_t key) const { return !causal || key <= query; }
};

template <typename T>
Operands<T> operands_of(const Relative& r);

// The heads of a chunk, given what a head needs.
inline int32_t chunk_of(int64_t heads, int64_t bytes_of_head) {
  return static_cast<int32_t>(
      std::clamp<int64_t>(kTermBytes / std::max<int64_t>(bytes_of_head, 1), 1, heads));
}

// Plans both sides, checks the index and that the relative positions reach, as the CPU does.
struct PairTiles {
  Tiles queries, keys;
};
PairTiles plan_pairs(Context* ctx, const char* row, const Relative& r);

// Room for the position terms of `heads` heads, which fill_terms() computes for a chunk.
template <typename T>
void reserve_terms(Context* ctx, Operands<T>& o, int32_t heads);
template <typename T>
void fill_terms(Context* ctx, const char* row, const Operands<T>& o);
// Numbers of position terms that a head has.
template <typename T>
int64_t terms_of_head(const Operands<T>& o) {
  return (o.position_k.data ? int64_t{o.queries.n} * o.terms.positions : 0) +
         (o.position_q.data ? int64_t{o.keys.n} * o.terms.positions : 0);
}

// Products (query, key), or (key, query), become scores; -infinity where a query does not see a
// key. `row` and `column` are the thread's first rows of either segment.
template <bool kOfKeys, typename T>
__device__ inline void add_terms(Corner<Acc<T>>& s, const Operands<T>& o, const Rows& queries,
                                 const Rows& keys, int32_t head, int32_t row, int32_t column) {
  using A = Acc<T>;
  const int64_t positions = o.terms.positions;
  BALORA_UNROLL
  for (int i = 0; i < kEdge; ++i) {
    BALORA_UNROLL
    for (int j = 0; j < kEdge; ++j) {
      const int32_t query = kOfKeys ? column + j : row + i, key = kOfKeys ? row + i : column + j;
      if (query >= queries.rows || key >= keys.rows || !o.sees(query, key)) {
        s[i][j] = static_cast<A>(-INFINITY);
        continue;
      }
      A score = s[i][j];
      const int32_t place = o.terms.relative > 0 ? o.terms.place(query, key) : 0;
      if (o.terms.index) {
        const int32_t p = o.terms.position(place);
        const int64_t q_row = int64_t{head} * o.queries.n + queries.begin + query;
        const int64_t k_row = int64_t{head} * o.keys.n + keys.begin + key;
        if (o.terms.to_position) score += o.terms.to_position[q_row * positions + p];
        if (o.terms.from_key) score += o.terms.from_key[k_row * positions + p];
      }
      score *= o.scale;
      if (o.terms.bias) {
        score += load(o.terms.bias[int64_t{place} * o.all_heads + o.head + head]);
      }
      s[i][j] = score;
    }
  }
}

}  // namespace balora::cuda::relative
