#include <cstring>
#include <utility>

#include "block.h"

namespace emulator {

SharedRoom shared_room;

namespace {

constexpr size_t kUnit = SharedRoom::kUnit;

size_t round_up(size_t value) {
  return (value + kUnit - 1) / kUnit * kUnit;
}

void add_region(const Region& region) {
  current->regions.push_back(region);
  for (size_t at = 0; at < region.bytes; at += kUnit) {
    uint8_t& unit = shared_room.valid_of[(region.offset + at) / kUnit];
    unit = std::max(unit, static_cast<uint8_t>(std::min(region.bytes - at, kUnit)));
  }
}

}  // namespace

bool SharedRoom::valid_range(size_t offset, size_t bytes) const {
  for (const size_t end = offset + bytes; offset < end;) {
    const size_t next = std::min((offset / kUnit + 1) * kUnit, end);
    if (offset % kUnit + (next - offset) > valid_of[offset / kUnit]) return false;
    offset = next;
  }
  return true;
}

void open_shared(Block& block) {
  block.regions.clear();
  // The most arrays that the dynamic part can have, each with its guard; a few may be empty.
  block.dynamic_room = 2 * round_up(static_cast<size_t>(block.launch->shared_bytes)) + 18 * kUnit;
  block.static_bytes = 0;
  block.room = block.dynamic_room;
  std::memset(shared_room.valid_of, 0, sizeof shared_room.valid_of);
}

void* static_shared(const void* key, size_t bytes, Site site) {
  Running* const caller = std::exchange(running, nullptr);
  Block& block = *current;
  size_t offset = 0;
  for (const Region& region : block.regions) {
    if (region.key == key) offset = region.offset;
  }
  if (offset == 0) {
    block.static_bytes += bytes;
    const auto all = static_cast<int64_t>(block.static_bytes) + block.launch->shared_bytes;
    if (static_cast<int64_t>(block.static_bytes) > kStaticLimit || all > kSharedLimit) {
      fail("has " + std::to_string(block.static_bytes) + " bytes of static shared arrays beside " +
           std::to_string(block.launch->shared_bytes) + " dynamic bytes; a block may have " +
           std::to_string(kStaticLimit) + " static and " + std::to_string(kSharedLimit) +
           " in all");
    }
    offset = block.room;
    block.room += round_up(bytes) + kUnit;
    add_region({key, offset, bytes, site});
  }
  running = caller;
  return shared_room.memory + offset;
}

void* dynamic_array(SharedCursor& cursor, size_t bytes) {
  Running* const caller = std::exchange(running, nullptr);
  Block& block = *current;
  if (cursor.offset == 0) cursor.offset = kUnit;
  const size_t offset = cursor.offset;
  const auto declared = static_cast<size_t>(block.launch->shared_bytes);
  if (cursor.used + bytes > declared) {
    fail("asks for " + std::to_string(cursor.used + bytes) +
         " bytes of dynamic shared memory, the launch gave " + std::to_string(declared));
  }
  bool known = false;
  for (const Region& region : block.regions)
    known |= region.offset == offset && region.bytes == bytes;
  if (!known) add_region({nullptr, offset, bytes, {}});
  cursor.offset += round_up(bytes) + kUnit;
  cursor.used += round_up(bytes);
  running = caller;
  return shared_room.memory + offset;
}

std::string describe_shared(const Block& block, size_t offset) {
  const Region* before = nullptr;
  int number = 0, dynamic = 0;
  for (const Region& region : block.regions) {
    dynamic += region.key == nullptr;
    if (region.offset > offset || (before && region.offset < before->offset)) continue;
    before = &region;
    number = dynamic;
  }
  if (!before) return "of shared memory that belongs to no array";
  const std::string of =
      (before->key ? "the static array of " + std::to_string(before->bytes) + " bytes"
                   : "region " + std::to_string(number) + " of the dynamic part, " +
                         std::to_string(before->bytes) + " bytes") +
      (before->key ? " declared at" + text_of(before->site) : "");
  const size_t inside = offset - before->offset;
  if (inside < before->bytes) return "at byte " + std::to_string(inside) + " of " + of;
  return std::to_string(inside - before->bytes) + " bytes past the end of " + of;
}

}  // namespace emulator
