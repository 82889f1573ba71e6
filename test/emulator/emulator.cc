// Launches: blocks one after the other, their threads as fibres, a warp at a time until all of its
// lanes wait. BALORA_EMULATOR_ORDER=reverse or shuffle (shuffle:SEED) takes blocks, warps and lanes
// in another order, which no correct kernel notices.
#include "emulator.h"

#include <cstdlib>
#include <numeric>
#include <random>

#include "arena.h"
#include "block.h"

namespace emulator {

Block* current = nullptr;
thread_local Running* running __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

uint32_t next_epoch = 1;
Running state;  // of the thread that runs

Lane& self() {
  return *current->lanes[current->running];
}
Warp& own_warp() {
  return *current->warps[current->running / kLanes];
}

// After anything that changes who runs or when.
void refresh() {
  const Lane& lane = self();
  state.stack = lane.fibre.stack();
  state.known = lane.known;
  state.mine = make_record(state.epoch, current->running, lane.stamp);
}

// In the emulator's functions that a kernel calls: nothing is checked until they return.
class Quiet {
 public:
  Quiet() { running = nullptr; }
  ~Quiet() {
    refresh();
    running = &state;
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

// ---- Order --------------------------------------------------------------------------------------

class Order {
 public:
  Order() {
    const char* wish = std::getenv("BALORA_EMULATOR_ORDER");
    const std::string text = wish ? wish : "";
    reverse_ = text == "reverse";
    shuffle_ = text.rfind("shuffle", 0) == 0;
    if (shuffle_) random_.seed(++launches_ + (text.size() > 8 ? std::stoul(text.substr(8)) : 0));
  }
  // 0 to count - 1; another permutation each time where they are shuffled.
  void fill(std::vector<unsigned>& order, size_t count) {
    order.resize(count);
    std::iota(order.begin(), order.end(), 0u);
    if (reverse_) std::reverse(order.begin(), order.end());
    if (shuffle_) std::shuffle(order.begin(), order.end(), random_);
  }

 private:
  bool reverse_, shuffle_;
  std::minstd_rand random_;
  static inline unsigned launches_ = 0;  // each has an order of its own
};

// ---- Meetings of lanes --------------------------------------------------------------------------

const char* name_of(Meeting meeting) {
  switch (meeting) {
    case Meeting::kBarrier:
      return "__syncwarp";
    case Meeting::kShuffle:
      return "a shuffle";
    case Meeting::kVote:
      return "a vote";
    case Meeting::kLoadMatrix:
      return "ldmatrix";
    case Meeting::kMultiply:
      return "mma";
  }
  return "";
}

// Everything that the lanes of `present` did is ordered before what each of them does from now on.
void order_lanes(Block& block, Warp& warp, unsigned first, unsigned present) {
  const bool all = present == warp.alive;
  const uint32_t before = warp.clock;
  warp.clock = std::min(warp.clock + 1, kLastStamp);
  uint32_t merged[kLanes + 1] = {};
  if (!all) {
    for (unsigned i = 0; i < kLanes; ++i) {
      if (!(present >> i & 1)) continue;
      Lane& lane = *block.lanes[first + i];
      for (unsigned j = 0; j <= kLanes; ++j) merged[j] = std::max(merged[j], lane.known[j]);
      merged[i] = std::max(merged[i], lane.stamp);
    }
  }
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(present >> i & 1)) continue;
    Lane& lane = *block.lanes[first + i];
    lane.stamp = warp.clock;
    lane.present = present;
    if (all) {
      lane.known[kLanes] = before;
    } else {
      std::copy(std::begin(merged), std::end(merged), lane.known);
    }
  }
}

void hand_out(Block& block, Warp& warp, unsigned first, unsigned present, Combine combine) {
  if (present == warp.alive) {  // every lane has read what the meeting before the last gave
    Slots& taken = warp.taken[warp.turn++ % 2];
    taken = warp.brought;
    if (combine) combine(taken);
    for (unsigned i = 0; i < kLanes; ++i) {
      if (present >> i & 1) block.lanes[first + i]->taken = &taken;
    }
    return;
  }
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(present >> i & 1)) continue;
    Lane& lane = *block.lanes[first + i];
    if (!lane.own) lane.own = std::make_unique<Slots>();
    *lane.own = warp.brought;
    if (combine) combine(*lane.own);
    lane.taken = lane.own.get();
  }
}

// Lets the lanes that wait with `mask` go on if all that live are there.
bool try_release(Block& block, unsigned first, unsigned mask) {
  Warp& warp = *block.warps[first / kLanes];
  const unsigned present = mask & warp.alive;
  if ((present & ~warp.waiting) != 0) return false;
  const Lane* one = nullptr;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(present >> i & 1)) continue;
    const Lane& lane = *block.lanes[first + i];
    if (lane.mask != mask) return false;
    if (one && one->meeting != lane.meeting) {
      fail(std::string("and its warp meet in different places: thread ") + text_of(one->index) +
           " in " + name_of(one->meeting) + text_of(one->site) + ", thread " + text_of(lane.index) +
           " in " + name_of(lane.meeting) + text_of(lane.site));
    }
    one = &lane;
  }
  if (one && one->meeting != Meeting::kBarrier) hand_out(block, warp, first, present, one->combine);
  order_lanes(block, warp, first, present);
  warp.waiting &= ~present;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (present >> i & 1) block.lanes[first + i]->wait = Wait::kNone;
  }
  return true;
}

// ---- Running a block ----------------------------------------------------------------------------

void enter() {
  running = &state;
  current->launch->call(current->launch->closure.get());
  running = nullptr;
  Lane& lane = self();
  lane.wait = Wait::kDone;
  Warp& warp = own_warp();
  const unsigned first = current->running / kLanes * kLanes;
  warp.alive &= ~(1u << current->running % kLanes);
  for (unsigned i = 0; i < kLanes; ++i) {  // some may have waited for this one only
    if (warp.waiting >> i & 1) try_release(*current, first, current->lanes[first + i]->mask);
  }
  lane.fibre.leave();
}

void start_threads(Block& block) {
  const dim3 dims = block.launch->dims;
  while (block.lanes.size() < block.threads) block.lanes.push_back(std::make_unique<Lane>());
  const size_t warps = (block.threads + kLanes - 1) / kLanes;
  while (block.warps.size() < warps) block.warps.push_back(std::make_unique<Warp>());
  for (size_t w = 0; w < warps; ++w) {
    Warp& warp = *block.warps[w];
    const size_t lanes = std::min<size_t>(kLanes, block.threads - w * kLanes);
    warp.alive = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    warp.waiting = 0;
    warp.clock = 1;
  }
  for (unsigned i = 0; i < block.threads; ++i) {
    Lane& lane = *block.lanes[i];
    lane.index = {i % dims.x, i / dims.x % dims.y, i / (dims.x * dims.y)};
    lane.wait = Wait::kNone;
    lane.predicate = 0;
    lane.stamp = 1;
    std::fill(std::begin(lane.known), std::end(lane.known), 0u);
    lane.copies.clear();
    lane.groups.clear();
    lane.fibre.start(enter, i % kLanes * 128);
  }
}

void next_interval() {
  if (next_epoch == ~0u - 1) std::abort();  // four thousand million barriers
  state.epoch = next_epoch++;
}

std::string waits(const Lane& lane) {
  const std::string where = lane.wait == Wait::kBlock ? "__syncthreads" : name_of(lane.meeting);
  return "thread " + text_of(lane.index) + " waits in " + where + text_of(lane.site);
}

// All that live wait for the block: they go on together.
void release_block(Block& block) {
  const Lane *one = nullptr, *other = nullptr;
  bool all = true;
  int count = 0;
  for (unsigned i = 0; i < block.threads; ++i) {
    const Lane& lane = *block.lanes[i];
    if (lane.wait == Wait::kDone) continue;
    all &= lane.wait == Wait::kBlock;
    count += lane.predicate;
    if (!one) one = &lane;
    if (lane.wait != one->wait || lane.site.line != one->site.line) other = &lane;
  }
  if (!one) return;
  if (!all || other) {
    block.error = std::string("kernel ") + block.launch->name + ", block " + text_of(block.at) +
                  ": the threads wait for each other in different places: " + waits(*one) +
                  (other ? ", " + waits(*other) : "");
    return;
  }
  block.count = count;
  next_interval();
  for (unsigned i = 0; i < block.threads; ++i) {
    Lane& lane = *block.lanes[i];
    if (lane.wait == Wait::kBlock) lane.wait = Wait::kNone;
    lane.stamp = 1;
    std::fill(std::begin(lane.known), std::end(lane.known), 0u);
  }
  for (auto& warp : block.warps) warp->clock = 1;
}

// Runs lanes of a warp until all of them wait or are done.
void run_warp(Block& block, unsigned first, const std::vector<unsigned>& order, unsigned& left) {
  for (bool ran = true; ran;) {
    ran = false;
    for (const unsigned i : order) {
      if (first + i >= block.threads) continue;
      Lane& lane = *block.lanes[first + i];
      if (lane.wait != Wait::kNone) continue;
      block.running = first + i;
      refresh();
      lane.fibre.resume();
      running = nullptr;
      if (!block.error.empty()) return;
      ran = true;
      left -= lane.wait == Wait::kDone;
    }
  }
}

void run_block(Block& block, Order& order) {
  start_threads(block);
  next_interval();
  state.block_first = state.epoch;
  block.started.emplace_back(state.epoch, block.at);
  static std::vector<unsigned> warps, lanes;
  unsigned left = block.threads;
  while (left > 0) {
    order.fill(warps, (block.threads + kLanes - 1) / kLanes);
    for (const unsigned warp : warps) {
      order.fill(lanes, kLanes);
      run_warp(block, warp * kLanes, lanes, left);
      if (!block.error.empty()) return;
    }
    if (left > 0) release_block(block);
    if (!block.error.empty()) return;
  }
}

}  // namespace

std::string run_kernel(const Launch& launch, int device) {
  static Block block;  // keeps its fibres
  Order order;
  static std::vector<unsigned> xs;
  block.launch = &launch;
  block.threads = launch.dims.x * launch.dims.y * launch.dims.z;
  block.started.clear();
  block.error.clear();
  open_shared(block);
  state.arena = &Arena::get();
  state.device = state.arena->part(device);
  state.shadow = state.arena->shadow(state.device);
  state.launch_first = next_epoch;
  current = &block;
  order.fill(xs, launch.grid.x);
  for (unsigned z = 0; z < launch.grid.z && block.error.empty(); ++z) {
    for (unsigned y = 0; y < launch.grid.y && block.error.empty(); ++y) {
      for (size_t i = 0; i < xs.size() && block.error.empty(); ++i) {
        block.at = {xs[i], y, z};
        run_block(block, order);
      }
    }
  }
  current = nullptr;
  return block.error;
}

void leave_for_good(std::string error) {
  running = nullptr;
  current->error = std::move(error);
  self().fibre.leave();
  std::abort();  // never resumed
}

uint3 thread_index() {
  return self().index;
}
uint3 block_index() {
  return current->at;
}
dim3 block_size() {
  return current->launch->dims;
}
dim3 grid_size() {
  return current->launch->grid;
}
int lane() {
  return static_cast<int>(current->running % kLanes);
}

void block_barrier(Site site) {
  const Quiet quiet;
  Lane& lane = self();
  lane.site = site;
  lane.wait = Wait::kBlock;
  lane.fibre.leave();
  running = nullptr;
}
int block_count(int predicate, Site site) {
  Lane& lane = self();
  lane.predicate = predicate != 0;
  block_barrier(site);
  lane.predicate = 0;
  return current->count;
}

const Slots& meet(Meeting kind, unsigned mask, const void* value, size_t bytes, Site site,
                  Combine combine) {
  const Quiet quiet;
  Lane& lane = self();
  Warp& warp = own_warp();
  const unsigned bit = current->running % kLanes;
  lane.mask = mask;
  lane.meeting = kind;
  lane.combine = combine;
  lane.site = site;
  if (!(mask >> bit & 1)) {
    fail(std::string("calls ") + name_of(kind) + " with a mask that leaves itself out" +
         text_of(site));
  }
  std::memcpy(warp.brought.of[bit], value, bytes);
  warp.waiting |= 1u << bit;
  lane.wait = Wait::kWarp;
  if (!try_release(*current, current->running / kLanes * kLanes, mask)) {
    lane.fibre.leave();
    running = nullptr;
  }
  return lane.taken ? *lane.taken : warp.brought;
}

void check_present(int other) {
  const Lane& lane = self();
  if (lane.present >> other & 1) return;
  running = nullptr;
  fail("reads the value of lane " + std::to_string(other) + ", which takes no part in " +
       name_of(lane.meeting) + text_of(lane.site));
}

unsigned ballot(unsigned mask, int predicate, Site site) {
  const Slots& slots = meet(Meeting::kVote, mask, &predicate, sizeof predicate, site);
  const Lane& lane = self();
  unsigned out = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    int one;
    std::memcpy(&one, slots.of[i], sizeof one);
    if ((lane.present >> i & 1) && one) out |= 1u << i;
  }
  return out;
}

}  // namespace emulator
