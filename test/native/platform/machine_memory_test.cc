// The memory that a process may use, read from folders like those of Linux: without control groups,
// with those of version 2, of version 1, one within another, and in a container's own view.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "platform/platform.h"

namespace balora {

using platform::machine_memory;
using platform::MachineMemory;
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Files below a temporary folder, removed at the end.
class Tree {
 public:
  Tree() {
    static int count = 0;
    root_ = std::filesystem::temp_directory_path() /
            ("balora-memory-" + std::to_string(getpid()) + "-" + std::to_string(count++));
    std::filesystem::create_directories(root_);
  }
  ~Tree() { std::filesystem::remove_all(root_); }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  Tree& write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
    return *this;
  }
  // A machine with 16 GiB, 8 of them free, and 2 GiB of swap, half of it free.
  Tree& machine() {
    return write("proc/meminfo",
                 "MemTotal:       16777216 kB\nMemFree:         1048576 kB\n"
                 "MemAvailable:    8388608 kB\nSwapTotal:       2097152 kB\n"
                 "SwapFree:        1048576 kB\n");
  }
  MachineMemory memory() const { return machine_memory(root_.string()); }

 private:
  std::filesystem::path root_;
};

std::string bytes(uint64_t mebibytes) {
  return std::to_string(mebibytes * kMiB) + "\n";
}

void check(const Tree& tree, uint64_t free_mebibytes, uint64_t total_mebibytes) {
  const MachineMemory found = tree.memory();
  CHECK(found.free_bytes == free_mebibytes * kMiB);
  CHECK(found.total_bytes == total_mebibytes * kMiB);
}

constexpr const char* kMounts2 =
    "25 1 0:23 / /proc rw - proc proc rw\n"
    "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

}  // namespace

TEST_CASE("machine_memory: not known without the system's files") {
  check(Tree(), 0, 0);
}

TEST_CASE("machine_memory: the machine's, with its swap, where no group sets a limit") {
  check(Tree().machine(), 9216, 18432);
  Tree tree;
  tree.machine().write("proc/self/cgroup", "0::/a\n").write("proc/self/mountinfo", kMounts2);
  tree.write("sys/fs/cgroup/a/memory.max", "max\n");
  check(tree, 9216, 18432);
}

TEST_CASE("machine_memory: a group of version 2, whose caches of files count as free") {
  Tree tree;
  tree.machine().write("proc/self/cgroup", "0::/a/b\n").write("proc/self/mountinfo", kMounts2);
  const std::string group = "sys/fs/cgroup/a/b/";
  tree.write(group + "memory.max", bytes(1024)).write(group + "memory.current", bytes(700));
  tree.write(group + "memory.stat", "anon 1\ninactive_file " + bytes(100) + "active_file " +
                                        bytes(50) + "file_mapped " + bytes(40) +
                                        "slab_reclaimable " + bytes(10));
  tree.write(group + "memory.swap.max", bytes(0)).write(group + "memory.swap.current", bytes(0));
  check(tree, 1024 - 700 + 120, 1024);
  SUBCASE("with some of the machine's swap") {
    tree.write(group + "memory.swap.max", bytes(512));
    tree.write(group + "memory.swap.current", bytes(500));
    check(tree, 1024 - 700 + 120 + 12, 1536);
  }
  SUBCASE("in a group with less") {
    tree.write("sys/fs/cgroup/a/memory.max", bytes(800));
    tree.write("sys/fs/cgroup/a/memory.current", bytes(790));
    tree.write("sys/fs/cgroup/a/memory.swap.max", bytes(0));
    check(tree, 10, 800);
  }
  SUBCASE("over its limit") {
    tree.write(group + "memory.current", bytes(2000));
    check(tree, 0, 1024);
  }
}

TEST_CASE("machine_memory: a container that sees its own part of the groups") {
  Tree tree;
  tree.machine().write("sys/fs/cgroup/memory.max", bytes(64));
  tree.write("sys/fs/cgroup/memory.current", bytes(60));
  tree.write("sys/fs/cgroup/memory.swap.max", bytes(0));
  SUBCASE("with a namespace of its own") {
    tree.write("proc/self/cgroup", "0::/\n").write("proc/self/mountinfo", kMounts2);
  }
  SUBCASE("without one") {
    tree.write("proc/self/cgroup", "0::/docker/7\n");
    tree.write("proc/self/mountinfo",
               "30 25 0:26 /docker/7 /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
  }
  SUBCASE("from which it was moved") {
    tree.write("proc/self/cgroup", "0::/../other\n").write("proc/self/mountinfo", kMounts2);
  }
  check(tree, 4, 64);
}

TEST_CASE("machine_memory: a group of version 1, beside the hierarchy of version 2") {
  Tree tree;
  tree.machine().write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/jobs/7\n0::/init\n");
  tree.write("proc/self/mountinfo",
             "31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
             "32 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  const std::string group = "sys/fs/cgroup/memory/jobs/7/";
  tree.write(group + "memory.limit_in_bytes", bytes(1000));
  tree.write(group + "memory.usage_in_bytes", bytes(900));
  tree.write(group + "memory.stat", "inactive_file 1\ntotal_inactive_file " + bytes(30) +
                                        "total_active_file " + bytes(20) + "total_mapped_file " +
                                        bytes(20));
  check(tree, 130 + 1024, 1000 + 2048);
  SUBCASE("with a limit of memory and swap") {
    tree.write(group + "memory.memsw.limit_in_bytes", bytes(1100));
    tree.write(group + "memory.memsw.usage_in_bytes", bytes(950));
    check(tree, 180, 1100);
  }
  SUBCASE("in a group with less") {
    tree.write("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", bytes(500));
    tree.write("sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", bytes(499));
    check(tree, 1 + 1024, 500 + 2048);
  }
  SUBCASE("without a limit") {
    tree.write(group + "memory.limit_in_bytes", "9223372036854771712\n");
    check(tree, 9216, 18432);
  }
}

}  // namespace balora
