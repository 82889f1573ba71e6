// The runs of a backward, of which those that share a kv head keep their parts of dq in slots.
#pragma once
#include <algorithm>

#include "kernels/cpu/attention/attention_plan.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora::attention {

// Sums of dq for each run that shares its kv head, by heads of the group, tiles and elements.
template <typename A>
struct Slots {
  A* data;
  int64_t group, size;  // heads, and elements of each

  A* at(int64_t slot, int64_t h) const { return data + (slot * group + h) * size; }
};

// Adds the slots of each shared kv head, in order, and writes its dq.
template <typename A, typename Backward>
void merge_slots(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
                 const Plan& plan, const Slots<A>& slots, const Backward& backward) {
  std::vector<Run> shared;
  for (const auto& runs : plan.threads) {
    for (const Run& run : runs) {
      if (run.slot >= 0) shared.push_back(run);
    }
  }
  const auto same = [](const Run& a, const Run& b) {
    return a.segment == b.segment && a.kv_head == b.kv_head;
  };
  for (size_t i = 0; i < shared.size();) {
    size_t next = i + 1;
    while (next < shared.size() && same(shared[i], shared[next])) ++next;
    const Segment& segment = segments[static_cast<size_t>(shared[i].segment)];
    const int64_t tile = kTile * g.padded(), first = segment.skip / kTile;
    const int64_t tiles = tile_count(segment.rows);
    parallel_for(ctx, g.group(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        A* const total = slots.at(shared[i].slot, h);
        for (size_t other = i + 1; other < next; ++other) {
          const A* const part = slots.at(shared[other].slot, h);
          for (int64_t e = first * tile; e < tiles * tile; ++e) total[e] += part[e];
        }
        for (int64_t t = first; t < tiles; ++t) {
          backward.write_dq(segment, shared[i].kv_head * g.group() + h, t, total + t * tile);
        }
      }
    });
    i = next;
  }
}

// make(slots) makes a Backward, which has run(segment, run, scratch) and write_dq(segment, head,
// tile, sums). A is its sums' type.
template <typename Scratch, typename A, typename Make>
void backward_runs(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
                   const Make& make) {
  const Plan plan = make_plan(g, segments, ctx->num_threads, true);
  const int64_t scratch_size = scratch_bytes<Scratch>(g, plan) * plan.width();
  const int64_t size = tile_count(plan.longest) * kTile * g.padded();
  const int64_t slot_bytes = plan.slots * g.group() * size * static_cast<int64_t>(sizeof(A));
  char* memory = workspace<char>(ctx, scratch_size + slot_bytes);
  const Slots<A> slots{reinterpret_cast<A*>(memory + scratch_size), g.group(), size};
  const auto backward = make(slots);
  for_runs<Scratch>(ctx, g, plan, memory, [&](const Run& run, const Scratch& scratch) {
    backward.run(segments[static_cast<size_t>(run.segment)], run, scratch);
  });
  merge_slots(ctx, g, segments, plan, slots, backward);
}

namespace x86 {
// The backward of bf16 on AMX, but for padding rows.
void backward_on_amx(Context* ctx, const balora_attention_backward& o);
}  // namespace x86

}  // namespace balora::attention
