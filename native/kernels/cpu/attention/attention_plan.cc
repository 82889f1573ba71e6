#include "kernels/cpu/attention/attention_plan.h"

#include "kernels/shared/messages.h"

namespace balora::attention {

std::vector<Segment> read_segments(const View* cu_seqlens, const View* lengths, int64_t n) {
  const auto* bounds = static_cast<const int32_t*>(cu_seqlens->data);
  const auto* valid = lengths ? static_cast<const int32_t*>(lengths->data) : nullptr;
  const int64_t count = cu_seqlens->shape[0] - 1;
  if (bounds[0] != 0 || bounds[count] != n) {
    throw ArgumentError(messages::segment_ends(n, bounds[0], bounds[count]));
  }
  std::vector<Segment> segments;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t begin = bounds[b], stop = bounds[b + 1];
    if (stop < begin) {
      throw ArgumentError(messages::segment_falls(begin, stop, b + 1));
    }
    const int64_t rows = valid ? valid[b] : stop - begin;
    if (rows < 0 || rows > stop - begin) {
      throw ArgumentError(messages::segment_length(rows, b, stop - begin));
    }
    segments.push_back({begin, rows, stop});
  }
  return segments;
}

std::vector<Segment> read_segments(const View* cu_seqlens, const View* cu_queries,
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
    segment.query_begin = bounds[b];
  }
  return segments;
}

TileRange keys_of_queries(const Geometry& g, const Segment& segment, int64_t tile) {
  const Queries queries(segment, tile);
  if (queries.count() == 0) return {0, 0};
  return {g.first_key(queries.first) / kTile,
          tile_count(g.last_key(queries.last - 1, segment.rows))};
}

TileRange queries_of_keys(const Geometry& g, const Segment& segment, int64_t tile) {
  const int64_t first = tile * kTile, last = std::min(segment.rows, first + kTile) - 1;
  return {std::max(g.first_query(first), segment.skip) / kTile,
          tile_count(g.last_query(last, segment.rows))};
}

namespace {

// The tiles of every (segment, kv head) in order, each with its cost.
template <typename Visit>
void visit_tiles(const Geometry& g, const std::vector<Segment>& segments, bool by_keys,
                 const Visit& visit) {
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    const int64_t first = by_keys ? 0 : segment.skip / kTile;
    for (int64_t head = 0; head < g.kv_heads; ++head) {
      for (int64_t tile = first; tile < tile_count(segment.rows); ++tile) {
        const TileRange met =
            by_keys ? queries_of_keys(g, segment, tile) : keys_of_queries(g, segment, tile);
        visit(static_cast<int64_t>(s), head, tile, met.count());
      }
    }
  }
}

// Numbers the runs whose kv head is shared between threads.
void assign_slots(const std::vector<Segment>& segments, Plan& plan) {
  for (auto& runs : plan.threads) {
    for (Run& run : runs) {
      const int64_t tiles = tile_count(segments[static_cast<size_t>(run.segment)].rows);
      run.slot = run.last - run.first == tiles ? -1 : plan.slots++;
    }
  }
}

}  // namespace

Plan make_plan(const Geometry& g, const std::vector<Segment>& segments, int threads, bool by_keys) {
  Plan plan;
  int64_t total = 0;
  for (const Segment& segment : segments) plan.longest = std::max(plan.longest, segment.rows);
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
  if (by_keys) assign_slots(segments, plan);
  return plan;
}

}  // namespace balora::attention
