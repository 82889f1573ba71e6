// The memory that a process may use, by the files of Linux.
#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <new>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include "platform/platform.h"

namespace balora::platform {
namespace {

constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();  // no limit

uint64_t difference(uint64_t a, uint64_t b) {
  return a > b ? a - b : 0;
}

uint64_t sum(uint64_t a, uint64_t b) {
  return a > kNone - b ? kNone : a + b;
}

// A file that holds one number; nothing for "max" and where there is no such file.
std::optional<uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  uint64_t value = 0;
  if (!(file >> text)) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// The sum of some lines of a file of lines "key number".
uint64_t sum_of(const std::string& path, std::initializer_list<std::string_view> keys) {
  std::ifstream file(path);
  uint64_t total = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string key;
    uint64_t value = 0;
    if (words >> key >> value && std::find(keys.begin(), keys.end(), key) != keys.end()) {
      total = sum(total, value);
    }
  }
  return total;
}

struct System {
  MachineMemory memory;  // without swap
  MachineMemory swap;
};

System system_memory(const std::string& root) {
  const std::string path = root + "/proc/meminfo";
  const auto bytes = [&](std::string_view key) { return 1024 * sum_of(path, {key}); };
  return {{bytes("MemAvailable:"), bytes("MemTotal:")}, {bytes("SwapFree:"), bytes("SwapTotal:")}};
}

bool listed(const std::string& list, std::string_view wanted) {
  std::istringstream items(list);
  for (std::string item; std::getline(items, item, ',');) {
    if (item == wanted) return true;
  }
  return false;
}

// The process's path in the hierarchy of version 2, or in that of version 1's memory controller.
std::optional<std::string> group_path(const std::string& root, bool version2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (version2 ? controllers.empty() : listed(controllers, "memory")) {
      return line.substr(second + 1);
    }
  }
  return std::nullopt;
}

struct Mount {
  std::string root;   // the part of the hierarchy that is mounted
  std::string point;  // where
};

std::optional<Mount> group_mount(const std::string& root, bool version2) {
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line), after(line.substr(dash + 3));
    std::string skipped, type, source, options;
    Mount mount;
    before >> skipped >> skipped >> skipped >> mount.root >> mount.point;
    after >> type >> source >> options;
    if (version2 ? type == "cgroup2" : type == "cgroup" && listed(options, "memory")) return mount;
  }
  return std::nullopt;
}

// The folders of the process's group and of those around it, as far as they can be seen.
std::vector<std::string> group_folders(const std::string& root, bool version2) {
  const auto path = group_path(root, version2);
  const auto mount = group_mount(root, version2);
  if (!path || !mount) return {};
  const std::string below = mount->root == "/" ? "" : mount->root;
  const bool inside = path->starts_with(below) && path->find("..") == std::string::npos;
  std::string rest = inside ? path->substr(below.size()) : "";
  const std::string top = root + mount->point;
  std::vector<std::string> folders;
  for (;;) {
    while (rest.ends_with('/')) rest.pop_back();
    folders.push_back(top + rest);
    if (rest.empty()) return folders;
    rest.resize(rest.find_last_of('/'));
  }
}

// Memory that a group leaves, and swap; kNone in both where it sets no limit. Caches of files count
// as free but for pages that processes have mapped, which they need (their code, weights in use).
MachineMemory left_by_group2(const std::string& folder, const System& system) {
  const auto limit = number_in(folder + "/memory.max");
  if (!limit) return {kNone, kNone};
  const uint64_t used = number_in(folder + "/memory.current").value_or(0);
  const std::string stat = folder + "/memory.stat";
  const uint64_t caches =
      difference(sum_of(stat, {"inactive_file", "active_file", "slab_reclaimable"}),
                 sum_of(stat, {"file_mapped"}));
  const auto swap = number_in(folder + "/memory.swap.max");
  const uint64_t swapped = number_in(folder + "/memory.swap.current").value_or(0);
  const uint64_t swap_left = swap ? difference(*swap, swapped) : kNone;
  return {sum(difference(*limit, difference(used, caches)),
              std::min(swap_left, system.swap.free_bytes)),
          sum(*limit, std::min(swap.value_or(kNone), system.swap.total_bytes))};
}

MachineMemory left_by_group1(const std::string& folder, const System& system) {
  const std::string stat = folder + "/memory.stat";
  const uint64_t caches = difference(sum_of(stat, {"total_inactive_file", "total_active_file"}),
                                     sum_of(stat, {"total_mapped_file"}));
  const auto left = [&](const char* limit_file, const char* usage_file) -> MachineMemory {
    const auto limit = number_in(folder + limit_file);
    if (!limit) return {kNone, kNone};
    const uint64_t used = number_in(folder + usage_file).value_or(0);
    return {difference(*limit, difference(used, caches)), *limit};
  };
  const MachineMemory alone = left("/memory.limit_in_bytes", "/memory.usage_in_bytes");
  const MachineMemory both = left("/memory.memsw.limit_in_bytes", "/memory.memsw.usage_in_bytes");
  return {std::min(sum(alone.free_bytes, system.swap.free_bytes), both.free_bytes),
          std::min(sum(alone.total_bytes, system.swap.total_bytes), both.total_bytes)};
}

}  // namespace

MachineMemory machine_memory(const std::string& root) {
  const System system = system_memory(root);
  if (system.memory.total_bytes == 0) return {};
  MachineMemory least = {system.memory.free_bytes + system.swap.free_bytes,
                         system.memory.total_bytes + system.swap.total_bytes};
  for (const bool version2 : {true, false}) {
    for (const std::string& folder : group_folders(root, version2)) {
      const MachineMemory left =
          version2 ? left_by_group2(folder, system) : left_by_group1(folder, system);
      least.free_bytes = std::min(least.free_bytes, left.free_bytes);
      least.total_bytes = std::min(least.total_bytes, left.total_bytes);
    }
  }
  return least;
}

void require_memory(uint64_t bytes) {
  constexpr uint64_t kChecked = uint64_t{32} << 20;  // smaller blocks are not worth a look
  if (bytes < kChecked) return;
  const MachineMemory memory = machine_memory();
  if (memory.total_bytes > 0 && bytes > memory.free_bytes) throw std::bad_alloc();
}

}  // namespace balora::platform
