#include "arena.h"

#include <sys/mman.h>

#include <cstring>
#include <iterator>
#include <new>

namespace emulator {
namespace {

constexpr size_t kQuarantine = size_t{16} << 20;  // bytes that wait before they are used again
constexpr size_t kBig = size_t{32} << 20;         // pages of such an allocation go back at once

void* reserve(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  return at;
}

size_t round_up(size_t value, size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

Arena& Arena::get() {
  static auto* arena = new Arena();  // outlives every thread that may still free into it
  return *arena;
}

Arena::Arena() {
  const size_t all = kPart * (kDevices + 1), devices = kPart * kDevices;
  base_ = static_cast<char*>(reserve(all));
  valid_ = static_cast<uint8_t*>(reserve(all / kUnit));
  fours_ = static_cast<Cell*>(reserve(devices / 4 * sizeof(Cell)));
  bytes_ = static_cast<Cell*>(reserve(devices * sizeof(Cell)));
  for (int i = 0; i <= kDevices; ++i) parts_[i].top = static_cast<size_t>(i) * kPart + (1 << 20);
}

void Arena::end_quarantine(Part& part, size_t keep) {
  while (part.quarantined > keep) {
    const Waiting oldest = part.quarantine.front();
    part.quarantine.pop_front();
    part.quarantined -= oldest.weight;
    give_room(part, oldest.begin, oldest.length);
  }
}

size_t Arena::take_room(Part& part, size_t end, size_t length) {
  end_quarantine(part, kQuarantine);
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (auto it = part.room.begin(); it != part.room.end(); ++it) {
      if (it->second < length) continue;
      const auto [begin, bytes] = *it;
      part.room.erase(it);
      if (bytes > length) part.room[begin + length] = bytes - length;
      part.freed.erase(part.freed.lower_bound(begin), part.freed.lower_bound(begin + length));
      return begin;
    }
    if (part.top + length <= end) {
      part.top += length;
      return part.top - length;
    }
    end_quarantine(part, 0);
  }
  return 0;
}

void Arena::give_room(Part& part, size_t begin, size_t length) {
  auto next = part.room.lower_bound(begin);
  if (next != part.room.end() && next->first == begin + length) {
    length += next->second;
    next = part.room.erase(next);
  }
  if (next != part.room.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == begin) {
      before->second += length;
      return;
    }
  }
  part.room[begin] = length;
}

void* Arena::allocate(int which, size_t bytes) {
  Part& part = parts_[which];
  const size_t end = static_cast<size_t>(which + 1) * kPart;
  const size_t begin = take_room(part, end, round_up(bytes, kGuard) + kGuard);
  if (begin == 0) return nullptr;
  part.live[begin] = bytes;
  part.used += bytes;
  set_valid(begin, bytes, true);
  if (which != kPinned) std::memset(base_ + begin, 0xff, bytes);
  return base_ + begin;
}

bool Arena::release(int which, void* data) {
  Part& part = parts_[which];
  const auto begin = static_cast<size_t>(static_cast<char*>(data) - base_);
  const auto found = part.live.find(begin);
  if (found == part.live.end()) return false;
  const size_t bytes = found->second;
  part.live.erase(found);
  part.freed[begin] = bytes;
  part.used -= bytes;
  set_valid(begin, bytes, false);
  if (bytes >= kBig) drop_pages(begin, bytes);
  const size_t length = round_up(bytes, kGuard) + kGuard;
  // Addresses whose pages are gone cost next to nothing while they wait.
  const size_t weight = bytes >= kBig ? 4096 : length;
  part.quarantine.push_back({begin, length, weight});
  part.quarantined += weight;
  return true;
}

void Arena::drop_pages(size_t begin, size_t bytes) {
  const auto drop = [](char* from, char* to) {
    const auto first = round_up(reinterpret_cast<uintptr_t>(from), 4096);
    const auto last = reinterpret_cast<uintptr_t>(to) / 4096 * 4096;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  };
  drop(base_ + begin, base_ + begin + bytes);
  if (begin + bytes > kPart * kDevices) return;
  drop(reinterpret_cast<char*>(fours_ + begin / 4),
       reinterpret_cast<char*>(fours_ + (begin + bytes) / 4));
  drop(reinterpret_cast<char*>(bytes_ + begin), reinterpret_cast<char*>(bytes_ + begin + bytes));
}

void Arena::set_valid(size_t begin, size_t bytes, bool valid) {
  for (size_t at = 0; at < bytes; at += kUnit) {
    const size_t left = bytes - at;
    valid_[(begin + at) / kUnit] = valid ? static_cast<uint8_t>(left < kUnit ? left : kUnit) : 0;
  }
}

bool Arena::valid_range(size_t offset, size_t bytes) const {
  const size_t end = offset + bytes;
  for (size_t at = offset; at < end;) {
    const size_t next = (at / kUnit + 1) * kUnit < end ? (at / kUnit + 1) * kUnit : end;
    if (at % kUnit + (next - at) > valid_[at / kUnit]) return false;
    at = next;
  }
  return true;
}

std::string Arena::describe(const void* address) const {
  const auto at = static_cast<size_t>(static_cast<const char*>(address) - base_);
  const auto which = static_cast<int>(at / kPart);
  const Part& part = parts_[which];
  const std::string kind = which == kPinned ? "pinned host memory" : "device memory";
  const auto holder = [&](const std::map<size_t, size_t>& blocks) -> std::string {
    auto next = blocks.upper_bound(at);
    if (next != blocks.begin()) {
      const auto [begin, bytes] = *std::prev(next);
      const std::string of = " an allocation of " + std::to_string(bytes) + " bytes of " + kind;
      if (at < begin + bytes) return "at byte " + std::to_string(at - begin) + " of" + of;
      if (at < begin + round_up(bytes, kGuard) + kGuard / 2) {
        return std::to_string(at - begin - bytes) + " bytes past the end of" + of;
      }
    }
    if (next != blocks.end() && next->first - at <= kGuard) {
      return std::to_string(next->first - at) + " bytes before the start of an allocation of " +
             std::to_string(next->second) + " bytes of " + kind;
    }
    return "";
  };
  std::string text = holder(part.live);
  if (text.empty()) {
    text = holder(part.freed);
    if (!text.empty()) text += " that has been freed";
  }
  if (text.empty()) text = "in " + kind + " that was never allocated";
  if (which != kPinned) text += " (device " + std::to_string(which) + ")";
  return text;
}

}  // namespace emulator
