// Common parts of the attention kernels: rows of heads, the keys that a query sees, soft-capped
// scores, and the tiles that a batch of segments is cut into. The tiles are planned on the device,
// where the bounds of the segments are, so no row waits for a copy to the host and a step stays
// capturable: the host only knows how many tiles there can be at most.
#pragma once
#include <cmath>

#include "runtime/common.cuh"

namespace balora::cuda::attention {

constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// (row, head) starts at data + row * stride + head * size.
template <typename T>
struct Heads {
  T* data;
  int64_t stride;
  int32_t size;
  __device__ T* at(int64_t row, int32_t head) const {
    return data + row * stride + static_cast<int64_t>(head) * size;
  }
};
template <typename T>
Heads<T> heads_of(const View* view) {
  if (!view) return {};
  return {static_cast<T*>(view->data), view->stride[0], narrowed(view->shape[2], "a head size of")};
}

// Every (row, head) starts at a multiple of 16 bytes and has a multiple of 16 bytes.
template <typename T>
bool in_packs(const Heads<T>& heads) {
  constexpr int kPack = kPackOf<std::remove_const_t<T>>;
  return aligned16(heads.data) && heads.stride % kPack == 0 && heads.size % kPack == 0;
}

// Rows [begin, stop) of the batch are a segment whose first `rows` take part, the rest is padding.
// The tile starts at row `first` of the segment; one that is not there starts at its end. Queries
// are the rows from `skip` on; of q, row t is queries + t.
struct Tile {
  int32_t begin, rows, stop, first;
  int32_t segment, skip, queries;
  __device__ int32_t extent() const { return stop - begin; }
  __device__ int64_t key(int32_t row) const { return static_cast<int64_t>(begin) + row; }
  __device__ int64_t query(int32_t row) const { return static_cast<int64_t>(queries) + row; }
};

// The tiles of `side` rows that cover every segment with its padding, in order, then absent ones.
struct Tiles {
  const Tile* data;
  int64_t count;
};

// The segments of a call: n rows of k and v, m of q.
struct Segments {
  const View* cu_seqlens;            // (B+1)
  const View* cu_queries = nullptr;  // (B+1) or null
  const View* lengths = nullptr;     // (B) or null
  int64_t n, m;
};

// Tiles of the segments' keys, or of their queries. Checks the segments as the CPU does and reports
// to the context's fault, with the number of `row`; then no tile is there.
Tiles plan_tiles(Context* ctx, const char* row, const Segments& segments, bool of_queries,
                 int32_t side);

// Who sees whom in a segment of `rows` rows: a query itself and with window W > 0 the W - 1 keys
// before it, and after it when not causal.
struct Mask {
  int32_t window;  // 0: none
  int32_t causal;

  __device__ int32_t first_key(int32_t query) const {
    return window ? max(0, query - window + 1) : 0;
  }
  __device__ int32_t last_key(int32_t query, int32_t rows) const {
    if (causal) return query + 1;
    return window ? min(rows, query + window) : rows;
  }
  __device__ int32_t first_query(int32_t key) const {
    if (causal) return key;
    return window ? max(0, key - window + 1) : 0;
  }
  __device__ int32_t last_query(int32_t key, int32_t rows) const {
    return window ? min(rows, key + window) : rows;
  }
  __device__ bool sees(int32_t query, int32_t key, int32_t rows) const {
    return query < rows && key >= first_key(query) && key < last_key(query, rows);
  }
  // Whether some, or every, query of [query, query_end) sees some, or every, key of [key, key_end).
  __device__ bool any(int32_t query, int32_t query_end, int32_t key, int32_t key_end,
                      int32_t rows) const {
    query_end = min(query_end, rows);
    return query < query_end && key < last_key(query_end - 1, rows) && key_end > first_key(query);
  }
  __device__ bool all(int32_t query, int32_t query_end, int32_t key, int32_t key_end,
                      int32_t rows) const {
    return query_end <= rows && key >= first_key(query_end - 1) && key_end <= last_key(query, rows);
  }
};

// `n` rows: a window that reaches beyond them is none.
inline Mask mask_of(int64_t window, int32_t causal, int64_t n) {
  return {window >= n ? 0 : narrowed(window, "a window of"), causal};
}

// 1 - 2 / (e^2x + 1): right to 2e-7 absolute, which is what a score that bf16 made can use.
__device__ inline float tanh_approx(float x) {
  return 1.0f - __fdividef(2.0f, exp2_approx(x * (2 * kLog2e)) + 1.0f);
}

// delta (n,H) = rowsum(dout * out), which the gradient of a softmax subtracts.
template <typename T>
void row_dots(Context* ctx, const char* row, Heads<const T> dout, Heads<const T> out, int64_t n,
              int32_t heads, Acc<T>* delta);

// The numbers of a call, by value.
template <typename A>
struct Geometry {
  Mask mask;
  int32_t heads, group, size;  // H, H / Hkv, D
  A scale, softcap;            // softcap 0: none
};
// The numbers and the segments of a forward or a backward.
template <typename A, typename O>
Geometry<A> geometry_of(const O& o) {
  const int64_t heads = o.q->shape[1];
  return {.mask = mask_of(o.window, o.causal, o.k->shape[0]),
          .heads = narrowed(heads, "a number of heads of"),
          .group = narrowed(heads / o.k->shape[1], "a group of heads of"),
          .size = narrowed(o.q->shape[2], "a head size of"),
          .scale = static_cast<A>(o.scale),
          .softcap = static_cast<A>(o.softcap)};
}
template <typename O>
Segments segments_of(const O& o) {
  return {.cu_seqlens = o.cu_seqlens,
          .cu_queries = o.cu_queries,
          .lengths = o.lengths,
          .n = o.k->shape[0],
          .m = o.q->shape[0]};
}

}  // namespace balora::cuda::attention
