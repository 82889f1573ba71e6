// Launches: blocks one after the other, their threads as fibres in rounds, from barrier to barrier.
#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fibre.h"
#include "instructions.h"

namespace emulator {
namespace {

constexpr unsigned kLanes = 32;
constexpr size_t kGuard = 128;  // between two shared arrays

enum class Wait { kNone, kBlock, kWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int valid;
};

struct Lane {
  Thread thread;
  Fibre fibre;
  Wait wait = Wait::kNone;
  unsigned warp_mask = 0;
  int predicate = 0;
  unsigned exchanges = 0;
  std::vector<Copy> copies;               // of the group that is being put together
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

struct Warp {
  alignas(16) unsigned char slots[2][kLanes * kExchangeBytes];
};

struct Block {
  const char* name = "";
  const Body* body = nullptr;
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;  // dynamic, then static arrays, each followed by a guard
  size_t dynamic_bytes = 0, dynamic_used = 0, static_used = 0;
  std::map<std::pair<std::string, int>, std::pair<size_t, size_t>> statics;  // offset and bytes
  int block_or = 0, block_count = 0;
  unsigned running = 0;  // index in lanes
  std::exception_ptr error;
};

thread_local Block* current = nullptr;

Lane& self() {
  return *current->lanes[current->running];
}

void enter(void*) {
  Lane& lane = self();
  try {
    (*current->body)();
  } catch (...) {
    if (!current->error) current->error = std::current_exception();
  }
  lane.wait = Wait::kDone;
  lane.fibre.leave();
}

void wait_for(Wait kind) {
  Lane& lane = self();
  lane.wait = kind;
  lane.fibre.leave();
  if (current->error) throw std::runtime_error("the block was stopped");
}

// Lets every warp barrier whose lanes are all there go on; a lane that has ended does not count.
bool release_warps(Block& block, unsigned threads) {
  bool any = false;
  for (unsigned first = 0; first < threads; first += kLanes) {
    const unsigned end = std::min(first + kLanes, threads);
    for (unsigned i = first; i < end; ++i) {
      Lane& lane = *block.lanes[i];
      if (lane.wait != Wait::kWarp) continue;
      bool complete = true;
      for (unsigned j = first; j < end; ++j) {
        if (!(lane.warp_mask >> (j - first) & 1)) continue;
        const Lane& other = *block.lanes[j];
        complete &= other.wait == Wait::kDone ||
                    (other.wait == Wait::kWarp && other.warp_mask == lane.warp_mask);
      }
      if (!complete) continue;
      const unsigned mask = lane.warp_mask;
      for (unsigned j = first; j < end; ++j) {
        if ((mask >> (j - first) & 1) && block.lanes[j]->wait == Wait::kWarp) {
          block.lanes[j]->wait = Wait::kNone;
        }
      }
      any = true;
    }
  }
  return any;
}

bool release_block(Block& block, unsigned threads) {
  int any = 0, count = 0;
  unsigned waiting = 0;
  for (unsigned i = 0; i < threads; ++i) {
    const Lane& lane = *block.lanes[i];
    if (lane.wait == Wait::kDone) continue;
    if (lane.wait != Wait::kBlock) return false;
    ++waiting;
    any |= lane.predicate;
    count += lane.predicate != 0;
  }
  block.block_or = any;
  block.block_count = count;
  for (unsigned i = 0; i < threads; ++i) {
    if (block.lanes[i]->wait == Wait::kBlock) block.lanes[i]->wait = Wait::kNone;
  }
  return waiting > 0;
}

void run_block(Block& block, dim3 grid, dim3 dims, uint3 at) {
  const unsigned threads = dims.x * dims.y * dims.z;
  while (block.lanes.size() < threads) block.lanes.push_back(std::make_unique<Lane>());
  block.warps.resize((threads + kLanes - 1) / kLanes);
  block.dynamic_used = 0;
  block.statics.clear();
  block.static_used = 0;
  for (unsigned i = 0; i < threads; ++i) {
    Lane& lane = *block.lanes[i];
    lane.thread = {{i % dims.x, i / dims.x % dims.y, i / (dims.x * dims.y)}, at, dims, grid};
    lane.wait = Wait::kNone;
    lane.exchanges = 0;
    lane.copies.clear();
    lane.groups.clear();
    lane.fibre.start(enter, nullptr);
  }
  unsigned left = threads;
  while (left > 0) {
    bool progress = false;
    for (unsigned i = 0; i < threads; ++i) {
      Lane& lane = *block.lanes[i];
      if (lane.wait != Wait::kNone) continue;
      block.running = i;
      lane.fibre.resume();
      progress = true;
      if (lane.wait == Wait::kDone) --left;
    }
    if (block.error) {  // every waiting fibre is woken to unwind
      for (unsigned i = 0; i < threads; ++i) {
        if (block.lanes[i]->wait != Wait::kDone) block.lanes[i]->wait = Wait::kNone;
      }
      continue;
    }
    progress |= release_warps(block, threads);
    progress |= release_block(block, threads);
    if (!progress) {
      block.error = std::make_exception_ptr(
          std::runtime_error(std::string(block.name) +
                             ": the threads of a block wait for each other (a barrier that "
                             "some of them do not reach)"));
    }
  }
  if (block.error) std::rethrow_exception(std::exchange(block.error, nullptr));
}

}  // namespace

const Thread& thread() {
  return self().thread;
}
int lane() {
  return static_cast<int>(current->running % kLanes);
}

void run_kernel(const char* name, dim3 grid, dim3 dims, int64_t shared_bytes, const Body& body) {
  thread_local Block block;  // keeps its fibres
  constexpr size_t kStaticBytes = size_t{160} << 10;
  block.name = name;
  block.body = &body;
  block.dynamic_bytes = static_cast<size_t>(shared_bytes);
  // Pieces of the dynamic part get guards between them, so it takes more room here.
  block.shared.assign(2 * block.dynamic_bytes + 64 * kGuard + kStaticBytes, 0xff);
  current = &block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) run_block(block, grid, dims, {x, y, z});
    }
  }
  current = nullptr;
}

void block_barrier() {
  wait_for(Wait::kBlock);
}
int block_or(int predicate) {
  self().predicate = predicate;
  wait_for(Wait::kBlock);
  self().predicate = 0;
  return current->block_or;
}
int block_count(int predicate) {
  block_or(predicate);
  return current->block_count;
}
void warp_barrier(unsigned mask) {
  self().warp_mask = mask;
  wait_for(Wait::kWarp);
}

const unsigned char* exchange_bytes(unsigned mask, const void* value, size_t bytes) {
  Lane& lane = self();
  unsigned char* slots = current->warps[current->running / kLanes].slots[lane.exchanges++ % 2];
  std::memcpy(slots + current->running % kLanes * kExchangeBytes, value, bytes);
  warp_barrier(mask);
  return slots;
}

unsigned ballot(unsigned mask, int predicate) {
  const unsigned char* slots = exchange_bytes(mask, &predicate, sizeof predicate);
  unsigned out = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    int one;
    std::memcpy(&one, slots + i * kExchangeBytes, sizeof one);
    if ((mask >> i & 1) && one) out |= 1u << i;
  }
  return out;
}

void* dynamic_shared() {
  return current->shared.data() + kGuard;
}

void* dynamic_array(unsigned char*& next, size_t bytes) {
  const size_t rounded = (bytes + 127) / 128 * 128;
  unsigned char* piece = next;
  next += rounded + kGuard;
  return piece;
}

void* static_shared(size_t bytes, size_t, int line, const char* file) {
  Block& block = *current;
  const auto [entry, fresh] = block.statics.try_emplace({file, line});
  if (fresh) {
    const size_t dynamic_end = 2 * block.dynamic_bytes + 64 * kGuard;
    entry->second = {dynamic_end + block.static_used, bytes};
    block.static_used += (bytes + 127) / 128 * 128 + kGuard;
  }
  return block.shared.data() + entry->second.first;
}

void cp_async16(void* shared, const void* global, int valid) {
  self().copies.push_back({shared, global, valid});
}
void cp_async_commit() {
  Lane& lane = self();
  lane.groups.push_back(std::move(lane.copies));
  lane.copies.clear();
}
void cp_async_wait_until(int pending) {
  Lane& lane = self();
  while (lane.groups.size() > static_cast<size_t>(pending)) {
    for (const Copy& copy : lane.groups.front()) {
      std::memset(copy.to, 0, 16);
      if (copy.valid > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
    }
    lane.groups.erase(lane.groups.begin());
  }
}

}  // namespace emulator
