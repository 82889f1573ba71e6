// The plan of attention: the segments of a batch, who sees whom, and how threads share the work.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/runtime/arena.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/kernel_table.h"

namespace balora::attention {

constexpr int64_t kTile = 64;  // queries or keys of a tile; the last one of a segment is smaller

inline int64_t tile_count(int64_t rows) {
  return (rows + kTile - 1) / kTile;
}

// One sequence: rows [begin, begin + rows) take part, rows from there to stop are padding. Its
// queries may be its last rows alone: row t, from `skip` on, then is query_begin + t - skip of q.
struct Segment {
  int64_t begin, rows, stop;
  int64_t skip = 0, query_begin = begin;

  // The row of q for a row of the segment that is no less than `skip`.
  int64_t query(int64_t row) const { return query_begin + row - skip; }
};

// cu_seqlens (B+1) must rise from 0 to n; lengths (B), when there, lie within the segments.
std::vector<Segment> read_segments(const View* cu_seqlens, const View* lengths, int64_t n);

// Segments of q, k and v: cu_queries (B+1), when there, must rise from 0 to the rows of q, by at
// most as many rows as each segment has.
std::vector<Segment> read_segments(const View* cu_seqlens, const View* cu_queries,
                                   const View* lengths, int64_t queries, int64_t n);

struct Geometry {
  int64_t heads, kv_heads, size;  // H, Hkv, D
  double scale, softcap;          // softcap 0: none
  int64_t window;                 // 0: none
  bool causal;

  int64_t group() const { return heads / kv_heads; }
  int64_t padded() const { return tile_padded(size); }

  // Keys [first, last) that query t of a segment with `rows` rows sees.
  int64_t first_key(int64_t t) const { return window ? std::max<int64_t>(0, t - window + 1) : 0; }
  int64_t last_key(int64_t t, int64_t rows) const {
    if (causal) return t + 1;
    return window ? std::min(rows, t + window) : rows;
  }
  // Queries [first, last) that see key j.
  int64_t first_query(int64_t j) const {
    if (causal) return j;
    return window ? std::max<int64_t>(0, j - window + 1) : 0;
  }
  int64_t last_query(int64_t j, int64_t rows) const {
    return window ? std::min(rows, j + window) : rows;
  }
};

// The geometry and the segments of a forward or a backward.
template <typename O>
Geometry geometry_of(const O& o) {
  const int64_t rows = o.k->shape[0];
  return {.heads = o.q->shape[1],
          .kv_heads = o.k->shape[1],
          .size = o.q->shape[2],
          .scale = o.scale,
          .softcap = o.softcap,
          // A window that no segment is longer than is none.
          .window = o.window >= rows ? 0 : o.window,
          .causal = o.causal != 0};
}
template <typename O>
std::vector<Segment> segments_of(const O& o) {
  return read_segments(o.cu_seqlens, o.cu_queries, o.lengths, o.q->shape[0], o.k->shape[0]);
}

// Queries [first, last) of a tile of a segment; none where all of them are skipped.
struct Queries {
  int64_t first, last;
  Queries(const Segment& segment, int64_t tile)
      : first(std::max(tile * kTile, segment.skip)),
        last(std::max(first, std::min(segment.rows, (tile + 1) * kTile))) {}
  int64_t count() const { return last - first; }
};

// The keys of a tile of a segment.
struct Keys {
  int64_t first, count;
  int64_t row;  // of the first, among those of all segments
  Keys(const Segment& segment, int64_t tile)
      : first(tile * kTile),
        count(std::min(kTile, segment.rows - first)),
        row(segment.begin + first) {}
};

// Tiles [first, last) of the other side that a tile meets.
struct TileRange {
  int64_t first, last;
  int64_t count() const { return std::max<int64_t>(0, last - first); }
};
TileRange keys_of_queries(const Geometry& g, const Segment& segment, int64_t tile);
TileRange queries_of_keys(const Geometry& g, const Segment& segment, int64_t tile);

// Consecutive tiles of one (segment, kv head), for one thread. Slot >= 0: other threads hold the
// rest of this kv head, and the sums over tiles must be added from slots (consecutive runs of a kv
// head have consecutive slots).
struct Run {
  int64_t segment, kv_head;
  int64_t first, last;
  int64_t slot;
};

struct Plan {
  std::vector<std::vector<Run>> threads;
  int64_t slots = 0;
  int64_t longest = 0;  // rows of the longest segment

  int64_t width() const { return static_cast<int64_t>(threads.size()); }
};

// Deals the tiles in order, in shares of equal cost (tiles met), so the split depends on shapes and
// threads alone. by_keys: a run's tiles are key tiles (the backward), else query tiles.
Plan make_plan(const Geometry& g, const std::vector<Segment>& segments, int threads, bool by_keys);

// Bytes of the scratch of one thread. A Scratch is laid out by its constructor (arena, geometry,
// rows of the longest segment).
template <typename Scratch>
int64_t scratch_bytes(const Geometry& g, const Plan& plan) {
  Arena count;
  Scratch(count, g, plan.longest);
  return count.used();
}

// Calls body(run, scratch) for the runs of every thread. `memory` has the scratch of all threads.
template <typename Scratch, typename Body>
void for_runs(Context* ctx, const Geometry& g, const Plan& plan, char* memory, const Body& body) {
  const int64_t bytes = scratch_bytes<Scratch>(g, plan);
  parallel_for(ctx, plan.width(), 1, [&](int64_t begin, int64_t end) {
    const TileScope scope;
    for (int64_t thread = begin; thread < end; ++thread) {
      Arena arena(memory + thread * bytes);
      const Scratch scratch(arena, g, plan.longest);
      for (const Run& run : plan.threads[static_cast<size_t>(thread)]) body(run, scratch);
    }
  });
}

}  // namespace balora::attention
