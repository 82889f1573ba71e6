// The state of every four bytes of device and shared memory, and the rules that make two
// accesses a race. A record holds who accessed last and when: an epoch is the time between two
// barriers of one block and is never used twice, so nothing is cleared between blocks or launches;
// a stamp counts the meetings of a warp inside an epoch. Where a kernel touches less than four
// bytes, the cell is split into one cell a byte.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

class Arena;

enum class Access : uint8_t { kRead, kWrite, kAtomic, kCopyBegin, kCopyEnd };

// 32 bits epoch, 10 bits thread in the block, 17 bits stamp, 5 bits flags.
using Record = uint64_t;
constexpr Record kAtomicFlag = 1;  // written by an atomic
constexpr Record kLanesFlag = 2;   // in this epoch also by other lanes of the warp
constexpr Record kWarpsFlag = 4;   // in this epoch also by other warps of the block
constexpr Record kBlocksFlag = 8;  // also by an earlier block of the launch
constexpr Record kCopyFlag = 16;   // by a cp_async that is under way
constexpr uint32_t kLastStamp = (1u << 17) - 1;

inline uint32_t epoch_of(Record record) {
  return static_cast<uint32_t>(record >> 32);
}
inline uint32_t thread_of(Record record) {
  return static_cast<uint32_t>(record >> 22) & 1023;
}
inline uint32_t stamp_of(Record record) {
  return static_cast<uint32_t>(record >> 5) & kLastStamp;
}
inline Record make_record(uint32_t epoch, uint32_t thread, uint32_t stamp) {
  return static_cast<Record>(epoch) << 32 | static_cast<Record>(thread) << 22 |
         static_cast<Record>(stamp) << 5;
}

struct Cell {
  Record write, read;
};
constexpr Record kSplit = ~Record{0};  // in `write`: see the cells of the bytes; `read` dates it

// Cells of a range of memory: one for each four bytes, and one a byte for those that are split.
struct Shadow {
  Cell* fours;
  Cell* bytes;
};

// The thread that runs, as far as the checks ask.
struct Running {
  const char* stack;   // of its fibre
  const char* device;  // memory of the launch's device
  const Arena* arena;
  Shadow shadow;          // of the device's memory
  Record mine;            // what it writes into a cell
  const uint32_t* known;  // by lane of its warp, the stamp up to which all is ordered; [32]: all
  uint32_t epoch;
  uint32_t block_first;   // the block's first epoch
  uint32_t launch_first;  // the launch's
};

enum class Trouble : uint8_t { kNone, kRaceWithWrite, kRaceWithRead, kUnwritten, kUnderWay };
struct Finding {
  Trouble trouble = Trouble::kNone;
  Record other = 0;
  size_t offset = 0;  // of the byte
};

// Whether the access of `record` happened before what the running thread does now.
template <bool kShared>
inline bool ordered(const Running& self, Record record) {
  const uint32_t epoch = epoch_of(record);
  if (epoch < self.block_first) return kShared || epoch < self.launch_first;
  if (record & kBlocksFlag) return false;
  if (epoch != self.epoch) return true;
  if (record & kWarpsFlag) return false;
  const uint32_t other = thread_of(record), me = thread_of(self.mine);
  const bool several = record & kLanesFlag;
  if (other == me && !several) return true;
  if (other / 32 != me / 32) return false;
  const uint32_t stamp = stamp_of(record);
  return stamp <= self.known[32] || (!several && stamp <= self.known[other % 32]);
}

template <bool kShared>
inline void note_read(const Running& self, Cell& cell) {
  const Record before = cell.read;
  if (before == self.mine) return;
  const bool fresh = epoch_of(before) == self.epoch;
  if (fresh && (before & kWarpsFlag)) return;
  if (ordered<kShared>(self, before)) {
    cell.read = self.mine;
  } else if (fresh && thread_of(before) / 32 == thread_of(self.mine) / 32) {
    cell.read = self.mine | kLanesFlag;
  } else if (fresh) {
    cell.read = before | kWarpsFlag;  // a write now races with one of them
  }
  // Else an earlier block's: it stands for a race with any writer.
}

template <bool kShared>
inline Trouble race_of_write(const Running& self, const Cell& cell, bool atomic, Record& other) {
  const Record written = cell.write, read = cell.read;
  const bool both = atomic && (written & kAtomicFlag);
  if (!both && !ordered<kShared>(self, written)) {
    other = written;
    return Trouble::kRaceWithWrite;
  }
  if (!ordered<kShared>(self, read)) {
    other = read;
    return Trouble::kRaceWithRead;
  }
  return Trouble::kNone;
}

// Atomics race with plain accesses only; the last one's record stands for all
// that it does not follow.
template <bool kShared>
inline Record flags_of_atomic(const Running& self, Record before) {
  if (ordered<kShared>(self, before)) return kAtomicFlag;
  if (epoch_of(before) < self.block_first) return kAtomicFlag | kBlocksFlag;
  const bool same_warp = thread_of(before) / 32 == thread_of(self.mine) / 32;
  const Record kept = before & (kLanesFlag | kWarpsFlag | kBlocksFlag);
  if (epoch_of(before) != self.epoch) return kAtomicFlag | (kept & kBlocksFlag);
  return kAtomicFlag | kept | (same_warp ? kLanesFlag : kWarpsFlag);
}

template <bool kShared>
inline Trouble touch_cell(const Running& self, Cell& cell, Access how, Record& other) {
  const Record written = cell.write;
  const bool of_block = epoch_of(written) >= self.block_first;
  const bool copying = (written & kCopyFlag) && of_block;
  if (how == Access::kRead || how == Access::kAtomic) {
    if (kShared && !of_block) return Trouble::kUnwritten;
  }
  if (copying && !(how == Access::kCopyEnd && thread_of(written) == thread_of(self.mine))) {
    other = written;
    return Trouble::kUnderWay;
  }
  if (how == Access::kRead) {
    if (!ordered<kShared>(self, written)) {
      other = written;
      return Trouble::kRaceWithWrite;
    }
    note_read<kShared>(self, cell);
    return Trouble::kNone;
  }
  if (copying) {  // the end of this thread's own copy
    cell.write = self.mine;
    return Trouble::kNone;
  }
  const Trouble trouble = race_of_write<kShared>(self, cell, how == Access::kAtomic, other);
  if (trouble != Trouble::kNone) return trouble;
  cell.write = self.mine | (how == Access::kCopyBegin ? kCopyFlag : 0);
  if (how == Access::kAtomic) cell.write |= flags_of_atomic<kShared>(self, written);
  return Trouble::kNone;
}

template <bool kShared>
inline void split(const Running& self, const Shadow& shadow, size_t four) {
  Cell& cell = shadow.fours[four];
  const uint32_t first = kShared ? self.block_first : self.launch_first;
  const bool is_split = cell.write == kSplit;
  if (!is_split || epoch_of(cell.read) < first) {
    const Cell before = is_split ? Cell{} : cell;
    for (size_t i = 0; i < 4; ++i) shadow.bytes[4 * four + i] = before;
    cell.write = kSplit;
  }
  cell.read = self.mine;
}

template <bool kShared>
inline Finding touch(const Running& self, const Shadow& shadow, size_t offset, size_t size,
                     Access how) {
  Record other = 0;
  const size_t end = offset + size;
  for (size_t at = offset; at < end;) {
    const size_t four = at / 4;
    Cell& cell = shadow.fours[four];
    const bool whole = at % 4 == 0 && end - at >= 4;
    if (whole && cell.write == kSplit &&
        epoch_of(cell.read) < (kShared ? self.block_first : self.launch_first)) {
      cell = {};
    }
    if (whole && cell.write != kSplit) {
      const Trouble trouble = touch_cell<kShared>(self, cell, how, other);
      if (trouble != Trouble::kNone) return {trouble, other, at};
      at += 4;
      continue;
    }
    split<kShared>(self, shadow, four);
    for (; at < end && at / 4 == four; ++at) {
      const Trouble trouble = touch_cell<kShared>(self, shadow.bytes[at], how, other);
      if (trouble != Trouble::kNone) return {trouble, other, at};
    }
  }
  return {};
}

}  // namespace emulator
