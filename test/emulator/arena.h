// Memory of the emulated devices and pinned host memory: one reserved range of addresses, a part a
// device, with unusable room between allocations, a table of the bytes that may be touched, and the
// shadow of the devices' parts. Freed room is used again late, so that a use after a free is found.
// Guarded by the lock of the run-time library (runtime.cc).
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "shadow.h"

namespace emulator {

class Arena {
 public:
  static constexpr int kDevices = 4;        // at most
  static constexpr int kPinned = kDevices;  // the part of pinned host memory
  static constexpr size_t kPart = size_t{16} << 30;

  static Arena& get();

  void* allocate(int part, size_t bytes);  // a device's filled with 0xff; null: no room
  bool release(int part, void* data);      // false: not an allocation of the part

  const char* part(int which) const { return base_ + static_cast<size_t>(which) * kPart; }
  bool holds(const void* at) const {
    return static_cast<size_t>(static_cast<const char*>(at) - base_) < kPart * (kDevices + 1);
  }
  size_t used(int part) const { return parts_[part].used; }
  // The shadow of the device's part that begins at `part`.
  Shadow shadow(const char* part) const {
    const auto offset = static_cast<size_t>(part - base_);
    return {fours_ + offset / 4, bytes_ + offset};
  }

  // Whether all the bytes may be touched; they lie in the arena.
  bool valid(const void* at, size_t bytes) const {
    const auto offset = static_cast<size_t>(static_cast<const char*>(at) - base_);
    if (offset % kUnit + bytes <= kUnit) return offset % kUnit + bytes <= valid_[offset / kUnit];
    return valid_range(offset, bytes);
  }
  // "4 bytes past the end of an allocation of 1024 bytes", for an address of the arena.
  std::string describe(const void* at) const;

 private:
  struct Waiting {  // freed room that is not used again yet
    size_t begin, length, weight;
  };
  struct Part {
    std::map<size_t, size_t> live;   // begin to bytes, from the arena's base
    std::map<size_t, size_t> freed;  // the same, until the room is used again
    std::map<size_t, size_t> room;   // begin to length
    std::deque<Waiting> quarantine;
    size_t quarantined = 0, top = 0, used = 0;
  };
  static constexpr size_t kUnit = 64;
  static constexpr size_t kGuard = 256;

  Arena();
  bool valid_range(size_t offset, size_t bytes) const;
  void set_valid(size_t begin, size_t bytes, bool valid);
  size_t take_room(Part& part, size_t end, size_t length);
  void end_quarantine(Part& part, size_t keep);
  void give_room(Part& part, size_t begin, size_t length);
  void drop_pages(size_t begin, size_t bytes);

  char* base_;
  uint8_t* valid_;  // of each unit, how many bytes from its start on
  Cell *fours_, *bytes_;
  Part parts_[kDevices + 1];
};

}  // namespace emulator
