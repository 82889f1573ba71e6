#include "engine/heap.h"

#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "engine/allocator.h"
#include "engine/engine.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"
#include "tensor/errors.h"

using namespace balora;

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr Heap::Options kSizes = {64, 4096, 256 * kMiB, kMiB};

// Without discard(): the allocator's behaviour on a device whose memory is there or not.
const KernelTable* eager_table() {
  static const KernelTable table = [] {
    KernelTable copy = *cpu_kernel_table();
    copy.discard = nullptr;
    return copy;
  }();
  return &table;
}

struct Held {
  unsigned char* data;
  int64_t bytes;
  unsigned char mark;
};

bool intact(const Held& held) {
  for (int64_t i = 0; i < held.bytes; ++i) {
    if (held.data[i] != held.mark) return false;
  }
  return true;
}

// Random requests and releases; every block must keep what was written to it.
void exercise(const KernelTable* table) {
  Heap heap(table, nullptr, kSizes);
  std::mt19937 random(7);
  std::vector<Held> held;
  int64_t used = 0;
  for (int step = 0; step < 4000; ++step) {
    if (held.empty() || random() % 5 < 3) {
      const int64_t bytes = 1 + static_cast<int64_t>(random() % (random() % 4 ? 3000 : 70'000));
      auto* data = static_cast<unsigned char*>(heap.allocate(bytes));
      REQUIRE(data != nullptr);
      REQUIRE(reinterpret_cast<uintptr_t>(data) % 64 == 0);
      held.push_back({data, bytes, static_cast<unsigned char>(step)});
      std::memset(data, held.back().mark, static_cast<size_t>(bytes));
      used += (bytes + 63) / 64 * 64;
    } else {
      const size_t i = random() % held.size();
      REQUIRE(intact(held[i]));
      used -= (held[i].bytes + 63) / 64 * 64;
      heap.release(held[i].data);
      held[i] = held.back();
      held.pop_back();
    }
    if (step % 500 == 0) heap.discard(static_cast<int64_t>(random()) % (2 * kMiB));
    REQUIRE(heap.used_bytes() == used);
    REQUIRE(heap.committed_bytes() >= used);
  }
  for (const Held& one : held) {
    CHECK(intact(one));
    heap.release(one.data);
  }
  CHECK(heap.used_bytes() == 0);
  heap.discard(0);
  CHECK(heap.committed_bytes() == 0);
}

// Blocks that a device was asked for and has not got back.
std::map<void*, uint64_t> outstanding;

const KernelTable* recording_table() {
  static const KernelTable table = [] {
    KernelTable copy = *eager_table();
    copy.allocate = [](void* state, uint64_t bytes) {
      void* data = cpu_kernel_table()->allocate(state, bytes);
      outstanding[data] = bytes;
      return data;
    };
    copy.release = [](void* state, void* data, uint64_t bytes) {
      CHECK(outstanding.at(data) == bytes);
      outstanding.erase(data);
      cpu_kernel_table()->release(state, data, bytes);
    };
    return copy;
  }();
  return &table;
}

TEST_CASE("heap: with exact blocks each is an allocation of its own, none goes while held") {
  setenv("BALORA_EXACT_BLOCKS", "1", 1);
  {
    Heap heap(recording_table(), nullptr, kSizes);
    void *small = heap.allocate(7), *large = heap.allocate(100'001), *empty = heap.allocate(0);
    CHECK(outstanding == std::map<void*, uint64_t>{{small, 7}, {large, 100'001}, {empty, 1}});
    CHECK(heap.used_bytes() == 100'009);
    heap.release(large);
    CHECK(outstanding.size() == 2);
    heap.hold_exact(true);
    void* held = heap.allocate(7);  // out of a segment
    CHECK(outstanding.size() == 3);
    heap.release(small);
    heap.release(held);
    CHECK(outstanding.size() == 3);
    heap.hold_exact(false);
    CHECK(!outstanding.contains(small));
    CHECK(outstanding.size() == 2);
  }
  CHECK(outstanding.empty());
  unsetenv("BALORA_EXACT_BLOCKS");
}

// Resident bytes of this process.
int64_t resident() {
  long size = 0, pages = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (!file) return -1;
  const int found = std::fscanf(file, "%ld %ld", &size, &pages);
  std::fclose(file);
  return found == 2 ? pages * 4096 : -1;
}

// A training step's pattern: layers push blocks whose sizes follow the batch's rows, the backward
// pops them in reverse with temporaries on the way.
void step(Allocator& allocator, int64_t rows) {
  struct Block {
    void* data;
    int64_t bytes;
  };
  std::vector<Block> kept;
  const auto take = [&](int64_t width) {
    const int64_t bytes = rows * width * 2;
    return Block{allocator.allocate(bytes, 0), bytes};
  };
  for (int layer = 0; layer < 30; ++layer) {
    for (const int64_t width : {576, 960, 576, 1536, 1536}) kept.push_back(take(width));
    const Block temporary = take(3072);
    allocator.release(temporary.data, temporary.bytes, 0);
  }
  while (!kept.empty()) {
    const Block temporary = take(1536);
    allocator.release(kept.back().data, kept.back().bytes, 0);
    kept.pop_back();
    allocator.release(temporary.data, temporary.bytes, 0);
  }
}

}  // namespace

TEST_CASE("heap: blocks keep their values, counts are exact, free memory merges") {
  exercise(cpu_kernel_table());
  exercise(eager_table());
}

TEST_CASE("heap: a freed neighbourhood serves one large block") {
  Heap heap(cpu_kernel_table(), nullptr, kSizes);
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) blocks.push_back(heap.allocate(8192));
  CHECK(heap.growths() == 64);
  for (int i = 0; i < 64; i += 2) heap.release(blocks[static_cast<size_t>(i)]);
  for (int i = 1; i < 64; i += 2) heap.release(blocks[static_cast<size_t>(i)]);
  void* whole = heap.allocate(64 * 8192);
  CHECK(whole == blocks[0]);
  CHECK(heap.growths() == 64);
  heap.release(whole);
}

TEST_CASE("heap: discarded pages go back to the system") {
  if (resident() < 0) {
    MESSAGE("skipped: no /proc/self/statm");
    return;
  }
  Heap heap(cpu_kernel_table(), nullptr, {4096, 2 * kMiB, 1024 * kMiB, kMiB});
  void* small = heap.allocate(4096);
  void* data = heap.allocate(200 * kMiB);
  std::memset(data, 1, static_cast<size_t>(200 * kMiB));
  const int64_t before = resident();
  heap.release(data);
  CHECK(heap.committed_bytes() >= 200 * kMiB);
  heap.discard(0);
  CHECK(heap.committed_bytes() == 2 * kMiB);  // the granule of the small block
  CHECK(before - resident() > 190 * kMiB);
  heap.release(small);
}

TEST_CASE("allocator: batches of all lengths share one bounded range") {
  for (const KernelTable* table : {cpu_kernel_table(), eager_table()}) {
    Allocator allocator(table, nullptr, "cpu");
    std::mt19937 random(11);
    for (int i = 0; i < 60; ++i) step(allocator, 200 + static_cast<int64_t>(random() % 1800));
    step(allocator, 2000);
    const MemoryStats most = allocator.stats();
    CHECK(most.live_bytes == 0);
    CHECK(most.cached_bytes <= most.peak_bytes * 5 / 4 + 64 * kMiB);
    for (int i = 0; i < 60; ++i) step(allocator, 200 + static_cast<int64_t>(random() % 1800));
    // It has seen the largest step: no later one asks the device for more than a rare odd fit.
    CHECK(allocator.stats().allocations - most.allocations < 60);
    const int64_t settled = allocator.stats().allocations;
    for (int i = 0; i < 10; ++i) step(allocator, 2000);
    CHECK(allocator.stats().allocations == settled);
    allocator.trim();
    CHECK(allocator.stats().cached_bytes == 0);
  }
}

TEST_CASE("allocator: a held small block does not split the room of large ones") {
  Allocator allocator(cpu_kernel_table(), nullptr, "cpu");
  void* first = allocator.allocate(100 * kMiB, 0);
  void* small = allocator.allocate(100, 0);
  allocator.release(first, 100 * kMiB, 0);
  const int64_t growths = allocator.stats().allocations;
  void* next = allocator.allocate(100 * kMiB, 0);
  CHECK(next == first);
  CHECK(allocator.stats().allocations == growths);
  allocator.release(next, 100 * kMiB, 0);
  allocator.release(small, 100, 0);
}

TEST_CASE("allocator: a peak that is over is not kept for ever") {
  Allocator allocator(cpu_kernel_table(), nullptr, "cpu");
  // Sizes that do not fit each other's holes: without the bound each would leave its own behind.
  for (int64_t size = 10; size < 110; ++size) {
    void* a = allocator.allocate(size * kMiB, 0);
    void* wall = allocator.allocate(kMiB, 0);
    allocator.release(a, size * kMiB, 0);
    void* b = allocator.allocate((size + 1) * kMiB, 0);
    allocator.release(b, (size + 1) * kMiB, 0);
    allocator.release(wall, kMiB, 0);
  }
  const MemoryStats stats = allocator.stats();
  CHECK(stats.cached_bytes <= stats.peak_bytes + stats.peak_bytes / 4 + 40 * kMiB);
}

namespace {

// Free bytes of a pretended machine, and how often it was asked.
uint64_t host_free = 0;
int64_t host_asked = 0;

const KernelTable* small_machine() {
  static const KernelTable table = [] {
    KernelTable copy = *cpu_kernel_table();
    copy.memory = [](void*, uint64_t* free_bytes, uint64_t* total_bytes) {
      ++host_asked;
      *free_bytes = host_free;
      *total_bytes = 1000 * kMiB;
      return int32_t{0};
    };
    return copy;
  }();
  return &table;
}

}  // namespace

TEST_CASE("allocator: a block that the host has no memory for is refused") {
  Allocator allocator(small_machine(), nullptr, "cpu");
  host_free = 600 * kMiB;
  void* half = allocator.allocate(300 * kMiB, 0);
  host_free = 300 * kMiB;
  try {
    allocator.allocate(400 * kMiB, 0);
    FAIL("400 MiB were given where 300 are free");
  } catch (const OutOfMemoryError& error) {
    CHECK(std::string(error.what()) ==
          "out of memory: 419430400 bytes wanted, 314572800 in use on cpu, of the 1048576000 that "
          "this process may have with swap 314572800 are free");
  }
  CHECK(allocator.stats().live_bytes == 300 * kMiB);
  void* more = allocator.allocate(200 * kMiB, 0);
  allocator.release(more, 200 * kMiB, 0);
  allocator.release(half, 300 * kMiB, 0);
  // Pages that the heap has already are the process's own.
  host_free = 0;
  void* again = allocator.allocate(250 * kMiB, 0);
  allocator.release(again, 250 * kMiB, 0);
}

TEST_CASE("allocator: many small blocks are refused, too, and the host is not asked for each") {
  Allocator allocator(small_machine(), nullptr, "cpu");
  std::vector<void*> blocks;
  host_asked = 0;
  const auto take = [&] {
    host_free = static_cast<uint64_t>(600 * kMiB - allocator.stats().live_bytes);
    blocks.push_back(allocator.allocate(kMiB, 0));
  };
  CHECK_THROWS_AS(for (int i = 0; i < 1000; ++i) take(), OutOfMemoryError);
  CHECK(blocks.size() > 500);
  CHECK(blocks.size() <= 600);
  CHECK(host_asked < 40);
  for (void* block : blocks) allocator.release(block, kMiB, 0);
}

TEST_CASE("engine: packed weights are counted while they live, and no longer") {
  Engine engine(cpu_kernel_table(), {});
  {
    Tensor weight = full(engine, {256, 128}, 0.5, DType::kF32);
    weight.freeze();
    const Tensor x = full(engine, {64, 128}, 1.0, DType::kF32);
    const Tensor y = linear_group(x, std::nullopt, std::nullopt, {{.weight = weight}})[0];
    engine.stream().sync();
    CHECK(engine.allocator().stats().derived_bytes >= 256 * 128 * 4);
  }
  engine.stream().sync();
  CHECK(engine.allocator().stats().derived_bytes == 0);
}
