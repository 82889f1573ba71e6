// The emulated device's inside: a launch runs its blocks one after the other, the threads of a
// block as fibres of the calling thread, each until its next barrier. test/emulator/README.md tells
// what is checked.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

namespace emulator {

struct Stream;
struct Event;
struct Graph;

// What a fibre is told about itself.
struct Thread {
  uint3 index{0, 0, 0};
  uint3 block_index{0, 0, 0};
  dim3 block_dim, grid_dim;
};
const Thread& thread();
int lane();

using Body = std::function<void()>;
void run(const char* name, dim3 grid, dim3 block, int64_t shared_bytes, Stream* stream, Body body);
// Other work of the stream (a copy, a library's product), in its order.
void enqueue(Stream* stream, const char* name, Body work);
// Whether all of it lies in one allocation of the device.
bool is_device_memory(const void* data, size_t bytes);

void block_barrier();
int block_or(int predicate);
int block_count(int predicate);
void warp_barrier(unsigned mask);

// Shared memory of the running block: an array known by its place in the source, the whole of the
// dynamic part, and a piece of it (moves `next` on).
void* static_shared(size_t bytes, size_t alignment, int line, const char* file);
void* dynamic_shared();
void* dynamic_array(unsigned char*& next, size_t bytes);

constexpr size_t kExchangeBytes = 32;
// Leaves `bytes` of this lane for the others of `mask`, waits for them, and returns the slots of
// all 32 lanes (kExchangeBytes apart), valid until this lane's next exchange but one.
const unsigned char* exchange_bytes(unsigned mask, const void* value, size_t bytes);

template <typename T>
T exchange(unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= kExchangeBytes);
  T out;
  std::memcpy(&out, exchange_bytes(mask, &value, sizeof value) + from * kExchangeBytes, sizeof out);
  return out;
}
unsigned ballot(unsigned mask, int predicate);

// What the instrumentation calls for every access of a kernel, and the emulated instructions for
// theirs: bounds, alignment, races.
void check_access(const void* at, size_t bytes, size_t alignment, bool write);
// An access that takes part in no race.
void note_atomic(const void* at, size_t bytes);
template <typename T, typename Update>
T atomic(T* at, Update update) {
  note_atomic(at, sizeof(T));
  T old;
  std::memcpy(&old, at, sizeof old);
  const T value = update(old);
  std::memcpy(at, &value, sizeof value);
  return old;
}

}  // namespace emulator
