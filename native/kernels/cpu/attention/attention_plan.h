// The plan of attention: the segments of a batch, who sees whom, and how threads share the work.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/runtime/arena.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/kernel_table.h"
#include "kernels/shared/messages.h"

namespace balora::attention {

constexpr int64_t kTile = 64;  // queries or keys of a tile; the last one of a segment is smaller

inline int64_t tile_count(int64_t rows) {
  return (rows + kTile - 1) / kTile;
}

// One sequence: its keys are rows [begin, begin + rows), those from there to stop are padding. Its
// queries are as many, or its last ones alone, or those of another sequence: [skip, queries), of
// which query t is row query_begin + t - skip of q; rows from there to query_stop are padding.
struct Segment {
  int64_t begin, rows, stop;
  int64_t skip = 0, queries = rows, query_begin = begin, query_stop = stop;

  // The row of q for a query that is no less than `skip`.
  int64_t query(int64_t t) const { return query_begin + t - skip; }
};

// cu_seqlens (B+1) must rise from 0 to n; lengths (B), when there, lie within the segments.
inline std::vector<Segment> read_segments(const View* cu_seqlens, const View* lengths, int64_t n) {
  const auto* bounds = static_cast<const int32_t*>(cu_seqlens->data);
  const auto* valid = lengths ? static_cast<const int32_t*>(lengths->data) : nullptr;
  const int64_t count = cu_seqlens->shape[0] - 1;
  if (bounds[0] != 0 || bounds[count] != n) {
    throw ArgumentError(messages::segment_ends(n, bounds[0], bounds[count]));
  }
  std::vector<Segment> segments;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t begin = bounds[b], stop = bounds[b + 1];
    if (stop < begin) throw ArgumentError(messages::segment_falls(begin, stop, b + 1));
    const int64_t rows = valid ? valid[b] : stop - begin;
    if (rows < 0 || rows > stop - begin) {
      throw ArgumentError(messages::segment_length(rows, b, stop - begin));
    }
    segments.push_back({begin, rows, stop});
  }
  return segments;
}

// Segments of q, k and v: cu_queries (B+1), when there, must rise from 0 to the rows of q, by at
// most as many rows as each segment has.
inline std::vector<Segment> read_segments(const View* cu_seqlens, const View* cu_queries,
                                          const View* lengths, int64_t queries, int64_t n) {
  std::vector<Segment> segments = read_segments(cu_seqlens, lengths, n);
  if (!cu_queries) return segments;
  const auto* bounds = static_cast<const int32_t*>(cu_queries->data);
  const size_t count = segments.size();
  if (bounds[0] != 0 || bounds[count] != queries) {
    throw ArgumentError(messages::query_ends(queries, bounds[0], bounds[count]));
  }
  for (size_t b = 0; b < count; ++b) {
    Segment& segment = segments[b];
    const int64_t rows = segment.stop - segment.begin, own = int64_t{bounds[b + 1]} - bounds[b];
    if (own < 0 || own > rows) {
      throw ArgumentError(messages::segment_queries(static_cast<int64_t>(b), own, rows));
    }
    segment.skip = rows - own;
    segment.query_begin = bounds[b], segment.query_stop = bounds[b + 1];
  }
  return segments;
}

struct Geometry {
  int64_t heads, kv_heads, size;  // H, Hkv, D
  double scale, softcap;          // softcap 0: none
  int64_t window;                 // 0: none
  bool causal;
  // Scores may get their scale sooner (take_scale).
  double query_scale = 1, score_scale = 1;

  int64_t group() const { return heads / kv_heads; }
  int64_t padded() const { return tile_padded(size); }

  // Keys [first, last) that query t sees, and queries that see key j, if there are as many.
  int64_t first_key(int64_t t) const { return window ? std::max<int64_t>(0, t - window + 1) : 0; }
  int64_t last_key(int64_t t) const { return causal ? t + 1 : window ? t + window : kFar; }
  int64_t first_query(int64_t j) const { return causal ? j : first_key(j); }
  int64_t last_query(int64_t j) const { return window ? j + window : kFar; }

  static constexpr int64_t kFar = int64_t{1} << 40;
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
        last(std::max(first, std::min(segment.queries, (tile + 1) * kTile))) {}
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
inline TileRange keys_of_queries(const Geometry& g, const Segment& segment, int64_t tile) {
  const Queries queries(segment, tile);
  if (queries.count() == 0) return {0, 0};
  return {g.first_key(queries.first) / kTile,
          tile_count(std::min(segment.rows, g.last_key(queries.last - 1)))};
}

inline TileRange queries_of_keys(const Geometry& g, const Segment& segment, int64_t tile) {
  const int64_t first = tile * kTile, last = std::min(segment.rows, first + kTile) - 1;
  return {std::max(g.first_query(first), segment.skip) / kTile,
          tile_count(std::min(segment.queries, g.last_query(last)))};
}

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
  int64_t longest = 0;  // keys or queries of the longest segment

  int64_t width() const { return static_cast<int64_t>(threads.size()); }
};

// The tiles of every (segment, kv head) in order, each with its cost.
template <typename Visit>
void visit_tiles(const Geometry& g, const std::vector<Segment>& segments, bool by_keys,
                 const Visit& visit) {
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    const int64_t first = by_keys ? 0 : segment.skip / kTile;
    const int64_t last = tile_count(by_keys ? segment.rows : segment.queries);
    for (int64_t head = 0; head < g.kv_heads; ++head) {
      for (int64_t tile = first; tile < last; ++tile) {
        const TileRange met =
            by_keys ? queries_of_keys(g, segment, tile) : keys_of_queries(g, segment, tile);
        visit(static_cast<int64_t>(s), head, tile, met.count());
      }
    }
  }
}

inline int64_t longest_of(const std::vector<Segment>& segments) {
  int64_t longest = 0;
  for (const Segment& s : segments) longest = std::max({longest, s.rows, s.queries});
  return longest;
}

// Deals the tiles in order, in shares of equal cost (tiles met), so the split depends on shapes and
// threads alone. by_keys: a run's tiles are key tiles (the backward), else query tiles.
inline Plan make_plan(const Geometry& g, const std::vector<Segment>& segments, int threads,
                      bool by_keys) {
  Plan plan{.longest = longest_of(segments)};
  int64_t total = 0;
  visit_tiles(g, segments, by_keys, [&](auto, auto, auto, int64_t cost) { total += cost; });
  plan.threads.resize(static_cast<size_t>(std::max(threads, 1)));
  const int64_t width = static_cast<int64_t>(plan.threads.size());
  int64_t before = 0;
  visit_tiles(g, segments, by_keys, [&](int64_t segment, int64_t head, int64_t tile, int64_t cost) {
    // A tile goes where its middle falls.
    const int64_t thread =
        std::min(width - 1, (2 * before + cost) * width / std::max<int64_t>(1, 2 * total));
    before += cost;
    auto& runs = plan.threads[static_cast<size_t>(thread)];
    const bool extends = !runs.empty() && runs.back().segment == segment &&
                         runs.back().kv_head == head && runs.back().last == tile;
    if (extends) {
      runs.back().last = tile + 1;
    } else {
      runs.push_back({segment, head, tile, tile + 1, -1});
    }
  });
  for (auto& runs : plan.threads) {
    for (Run& run : runs) {  // those whose kv head is shared between threads are numbered
      const int64_t tiles = tile_count(segments[static_cast<size_t>(run.segment)].rows);
      if (by_keys && run.last - run.first < tiles) run.slot = plan.slots++;
    }
  }
  return plan;
}

// Deals whole heads of segments, head by head: what is made once for a head then serves all of a
// thread's segments, and in the backward no two threads share a head, whose sums over segments are
// one thread's own.
inline Plan plan_by_heads(const Geometry& g, const std::vector<Segment>& segments, int threads,
                          bool by_keys) {
  Plan plan{.longest = longest_of(segments)};
  const auto count = static_cast<int64_t>(segments.size());
  const int64_t share = by_keys ? count : 1;  // segments of a head that stay together
  const int64_t shares = g.kv_heads * count / share;
  const int64_t width = std::clamp<int64_t>(shares, 1, std::max(threads, 1));
  for (int64_t thread = 0; thread < width; ++thread) {
    auto& runs = plan.threads.emplace_back();
    const int64_t last = shares * (thread + 1) / width * share;
    for (int64_t i = shares * thread / width * share; i < last; ++i) {
      const Segment& segment = segments[static_cast<size_t>(i % count)];
      const int64_t tiles = tile_count(by_keys ? segment.rows : segment.queries);
      runs.push_back({i % count, i / count, 0, tiles, -1});
    }
  }
  return plan;
}

// Bytes of what make(arena), the scratch of a thread, takes of an arena.
template <typename Make>
int64_t scratch_bytes(const Make& make) {
  Arena count;
  make(count);
  return count.used();
}

// Calls body(run, scratch) for the runs of every thread. `memory` has the scratch of all threads.
template <typename Make, typename Body>
void for_runs(Context* ctx, const Plan& plan, char* memory, const Make& make, const Body& body) {
  const int64_t bytes = scratch_bytes(make);
  parallel_for(ctx, plan.width(), 1, [&](int64_t begin, int64_t end) {
    const TileScope scope;
    for (int64_t thread = begin; thread < end; ++thread) {
      Arena arena(memory + thread * bytes);
      auto scratch = make(arena);
      for (const Run& run : plan.threads[static_cast<size_t>(thread)]) body(run, scratch);
    }
  });
}

}  // namespace balora::attention
