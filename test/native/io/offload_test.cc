// Weights whose bytes are in memory only around the ops that use them: what is read ahead, what is
// dropped and what stays, by the kernel's count of the pages; and the cache file.
#include "io/offload.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "io/fixtures.h"
#include "io/mapped_file.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::TempFolder;

namespace {

constexpr size_t kWeight = 8 << 20;  // bytes
constexpr size_t kCount = 8;
constexpr int kPages = kWeight / 4096;
// The kernel maps some pages around those that are asked for, 64 KiB at most.
constexpr size_t kAround = 2 * kCount * (64 << 10);

// Bytes of a map that this process has in its page tables.
size_t mapped_bytes(const void* begin) {
  std::ifstream maps("/proc/self/smaps");
  char wanted[32];
  std::snprintf(wanted, sizeof wanted, "%lx-", reinterpret_cast<unsigned long>(begin));
  bool found = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.starts_with(wanted)) found = true;
    if (found && line.starts_with("Rss:")) return 1024 * std::stoul(line.substr(4));
  }
  FAIL("no such map");
  return 0;
}

// A file of kCount weights, each of which is an offloaded memory of its own.
struct Offloaded {
  TempFolder folder;
  std::string path = folder.file("weights");
  std::shared_ptr<const MappedFile> file;
  Offload offload{folder.file("")};
  std::vector<std::shared_ptr<OffloadedMemory>> weights;

  Offloaded() {
    std::ofstream(path) << std::string(kCount * kWeight, '\1');
    file = MappedFile::open(path);
    for (size_t i = 0; i < kCount; ++i) weights.push_back(offload.add(part(i), file, false));
  }
  std::span<const std::byte> part(size_t i) const {
    return file->bytes().subspan(i * kWeight, kWeight);
  }
  size_t mapped() const { return mapped_bytes(file->bytes().data()); }
  void check_mapped(size_t bytes) const {
    CHECK(mapped() >= bytes);
    CHECK(mapped() <= bytes + kAround);
  }
  int sum(size_t i) const {
    int sum = 0;
    for (size_t at = 0; at < kWeight; at += 4096) sum += std::to_integer<int>(part(i)[at]);
    return sum;
  }
  std::vector<std::unique_ptr<MemoryUse>> announce(const std::vector<size_t>& order) {
    std::vector<std::unique_ptr<MemoryUse>> uses;
    for (const size_t i : order) uses.push_back(weights[i]->announce());
    return uses;
  }
  // Waits for the reader. `read`: bytes since the start.
  void wait_until(uint64_t present, uint64_t read) const {
    const auto is_so = [&] {
      const OffloadStats stats = offload.stats();
      return stats.present == present && stats.read == read;
    };
    for (int i = 0; i < 5000 && !is_so(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(is_so());
  }
};

}  // namespace

TEST_CASE("offload: a pass reads ahead and drops behind, within its limit") {
  Offloaded base;
  base.offload.set_limits(0, 2 * kWeight);
  CHECK(base.offload.stats().total == kCount * kWeight);
  // Forward and backward, as a step has them.
  const std::vector<size_t> order = {0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0};
  auto uses = base.announce(order);
  for (size_t i = 0; i < uses.size(); ++i) {
    uses[i]->begin();
    uses[i]->await();
    CHECK(base.sum(order[i]) == kPages);
    CHECK(base.mapped() <= 2 * kWeight + kAround);
    uses[i].reset();
  }
  base.check_mapped(0);
  const OffloadStats stats = base.offload.stats();
  CHECK(stats.present == 0);
  CHECK(stats.most_present <= 2 * kWeight);
  // The last two weights forward are the first ones backward, and were not read again.
  CHECK(stats.read == 14 * kWeight);
}

TEST_CASE("offload: what is announced is read before its op begins") {
  Offloaded base;
  base.offload.set_limits(0, 3 * kWeight);
  const auto uses = base.announce({5, 1, 6, 2});
  base.wait_until(3 * kWeight, 3 * kWeight);
  base.check_mapped(3 * kWeight);
}

TEST_CASE("offload: an op that never runs takes its announcement back") {
  Offloaded base;
  base.offload.set_limits(0, 2 * kWeight);
  auto uses = base.announce({0, 1, 2, 3});
  base.wait_until(2 * kWeight, 2 * kWeight);
  uses.erase(uses.begin(), uses.begin() + 2);
  base.wait_until(2 * kWeight, 4 * kWeight);
  uses.clear();
  base.wait_until(0, 4 * kWeight);
}

TEST_CASE("offload: the share stays, spread over the weights, and can be made smaller") {
  Offloaded base;
  base.offload.set_limits(4 * kWeight, kWeight);
  CHECK(base.offload.stats().resident == 4 * kWeight);
  std::vector<size_t> order(kCount);
  for (size_t i = 0; i < kCount; ++i) order[i] = i;
  const auto pass = [&] {
    for (auto& use : base.announce(order)) {
      use->begin();
      use->await();
      use.reset();
    }
  };
  pass();
  base.check_mapped(4 * kWeight);
  const uint64_t first = base.offload.stats().read;
  CHECK(first == kCount * kWeight);
  pass();
  CHECK(base.offload.stats().read - first == 4 * kWeight);
  // Every other weight: what is read is spread evenly.
  base.offload.set_limits(2 * kWeight, kWeight);
  CHECK(base.offload.stats().resident == 2 * kWeight);
  base.check_mapped(2 * kWeight);
  base.offload.set_limits(kCount * kWeight, kWeight);
  pass();
  base.check_mapped(kCount * kWeight);
  base.offload.set_limits(0, kWeight);
  base.check_mapped(0);
}

TEST_CASE("offload: an op that reads more than the limit has all of it") {
  Offloaded base;
  base.offload.set_limits(0, kWeight);
  auto uses = base.announce({2, 4, 6});
  for (auto& use : uses) use->begin();
  for (auto& use : uses) use->await();
  base.check_mapped(3 * kWeight);
  uses.clear();
  base.check_mapped(0);
}

TEST_CASE("offload: rows of a table are dropped behind their op, and are not read ahead") {
  Offloaded base;
  const auto table = base.offload.add(base.part(3), base.file, true);
  base.offload.set_limits(0, kWeight);
  CHECK(base.offload.stats().total == kCount * kWeight);
  auto use = table->announce();
  use->begin();
  use->await();
  base.check_mapped(0);
  CHECK(base.sum(3) == kPages);
  use.reset();
  base.check_mapped(0);
  CHECK(base.offload.stats().read == 0);
}

TEST_CASE("offload: pages that another map of the file has are left to it") {
  Offloaded base;
  const auto other = MappedFile::open(base.path);
  int sum = 0;
  for (size_t at = 0; at < kCount * kWeight; at += 4096)
    sum += std::to_integer<int>(other->bytes()[at]);
  CHECK(sum == static_cast<int>(kCount) * kPages);
  const size_t before = mapped_bytes(other->bytes().data());
  base.offload.set_limits(0, kWeight);
  for (auto& use : base.announce({0, 1, 2, 3, 4, 5, 6, 7})) {
    use->begin();
    use->await();
    use.reset();
  }
  base.check_mapped(0);
  CHECK(mapped_bytes(other->bytes().data()) == before);
}

TEST_CASE("offload: a file that was shortened is an error, whoever reads the lost pages") {
  Offloaded base;
  base.offload.set_limits(0, 2 * kWeight);
  REQUIRE(truncate(base.path.c_str(), static_cast<off_t>(3 * kWeight + 100)) == 0);
  for (auto& use : base.announce({2, 3, 4, 0, 7})) {
    use->begin();
    use->await();
    use.reset();
  }
  CHECK(base.sum(7) == 0);
  CHECK_THROWS_AS(base.file->refuse_changed(), FileChangedError);
}

TEST_CASE("offload: any order, any limits and ops that never run leave nobody waiting") {
  Offloaded base;
  std::mt19937 random(1);
  const auto below = [&](size_t n) { return random() % n; };
  std::vector<std::unique_ptr<MemoryUse>> queue;
  for (int op = 0; op < 400; ++op) {
    while (queue.size() < below(12) + 1) queue.push_back(base.weights[below(kCount)]->announce());
    if (below(8) == 0) base.offload.set_limits(below(10) * kWeight, below(4) * kWeight);
    const size_t operands = std::min(queue.size(), below(3) + 1);
    if (below(6) != 0) {
      for (size_t i = 0; i < operands; ++i) queue[i]->begin();
      for (size_t i = 0; i < operands; ++i) queue[i]->await();
    }
    queue.erase(queue.begin(), queue.begin() + static_cast<std::ptrdiff_t>(operands));
  }
  queue.clear();
  base.offload.set_limits(0, kWeight);
  CHECK(base.offload.stats().present == 0);
}

TEST_CASE("offload: ops go on where nothing is read ahead any more") {
  std::vector<std::unique_ptr<MemoryUse>> uses;
  std::shared_ptr<OffloadedMemory> weight;
  TempFolder folder;
  std::ofstream(folder.file("weights")) << std::string(kWeight, '\1');
  const auto file = MappedFile::open(folder.file("weights"));
  {
    Offload offload(folder.file(""));
    weight = offload.add(file->bytes(), file, false);
    uses.push_back(weight->announce());
  }
  uses.push_back(weight->announce());
  for (auto& use : uses) {
    use->begin();
    use->await();
    use.reset();
  }
}

TEST_CASE("offload: the cache file has no name, and holds what is written") {
  TempFolder folder;
  auto offload = std::make_unique<Offload>(folder.file(""));
  std::vector<std::shared_ptr<const CachedPart>> parts;
  std::vector<std::string> contents = {std::string(5, 'a'), std::string(100000, 'b'),
                                       std::string(4096, 'c')};
  for (const std::string& text : contents) {
    parts.push_back(offload->reserve(text.size()));
    parts.back()->write(text.data());
  }
  offload.reset();
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::span<const std::byte> bytes = parts[i]->bytes();
    platform::drop_pages(bytes);
    REQUIRE(bytes.size() == contents[i].size());
    CHECK(std::memcmp(bytes.data(), contents[i].data(), bytes.size()) == 0);
    CHECK_NOTHROW(parts[i]->refuse_changed());
  }
}

TEST_CASE("offload: a folder that takes no cache is named") {
  TempFolder folder;
  Offload nowhere(folder.file("nowhere"));
  CHECK_THROWS_WITH_AS(
      nowhere.reserve(1),
      doctest::Contains("nowhere: takes no cache of an offloaded base: No such file"), NativeError);
}
