// The emulated device's face towards kernels. A launch runs its blocks one after the other, the
// threads of a block as fibres of the calling thread, each until its next barrier; every access of
// a kernel to memory is checked. README.md says how, and what is found.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

// The emulator's own accesses are not a kernel's.
#define BALORA_UNCHECKED __attribute__((no_sanitize_thread, no_sanitize("alignment")))

namespace emulator {

struct Stream;
struct Event;
struct Graph;

// A place in the source. A barrier takes one as two default arguments, which name its caller.
struct Site {
  const char* file;
  int line;
};
#define BALORA_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- Launches -----------------------------------------------------------------------------------

struct Launch {
  const char* name;
  dim3 grid, dims;
  int64_t shared_bytes;
  std::shared_ptr<void> closure;  // the kernel with its arguments
  size_t closure_bytes;
  void (*call)(void* closure);
};
void enqueue_launch(Stream* stream, Launch launch);
// Other work of the stream (a library's product), in its order.
void enqueue(Stream* stream, const char* name, std::function<void()> work);
// Whether all of it lies in one allocation of the device.
bool is_device_memory(const void* data, size_t bytes);

template <typename Body>
void run(const char* name, dim3 grid, dim3 block, int64_t shared_bytes, Stream* stream, Body body) {
  enqueue_launch(stream, {name, grid, block, shared_bytes, std::make_shared<Body>(std::move(body)),
                          sizeof(Body), [](void* closure) { (*static_cast<Body*>(closure))(); }});
}

// ---- What a thread knows of itself --------------------------------------------------------------

__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();
__attribute__((const)) int lane();

// ---- Shared memory of the running block ---------------------------------------------------------

// An array known by `key`, the same for every thread that asks.
void* static_shared(const void* key, size_t bytes, Site site);
// A place in the dynamic part: where it is in the emulated block, which has guards between regions,
// and how many bytes a real one would have used.
struct SharedCursor {
  size_t offset = 0, used = 0;
};
void* dynamic_array(SharedCursor& cursor, size_t bytes);

// ---- Barriers and exchange between lanes --------------------------------------------------------

void block_barrier(Site site);
// How many threads of the block came with a predicate that holds.
int block_count(int predicate, Site site);

enum class Meeting : uint8_t { kBarrier, kShuffle, kVote, kLoadMatrix, kMultiply };
constexpr size_t kExchangeBytes = 48;
struct Slots {
  alignas(16) unsigned char of[32][kExchangeBytes];
};
// Turns what the lanes brought into what they take away, once all of them are there.
using Combine = void (*)(Slots& slots);

// Leaves `bytes` of this lane for the others of `mask`, waits for them, and returns the slots of
// all 32 lanes; valid until this lane's next meeting.
const Slots& meet(Meeting kind, unsigned mask, const void* value, size_t bytes, Site site,
                  Combine combine = nullptr);
// Fails where the lane took no part in this thread's latest meeting.
void check_present(int lane);

template <typename T>
BALORA_UNCHECKED T exchange(unsigned mask, T value, int from, Site site) {
  static_assert(sizeof(T) <= kExchangeBytes);
  const Slots& slots = meet(Meeting::kShuffle, mask, &value, sizeof value, site);
  check_present(from);
  T out;
  __builtin_memcpy(&out, slots.of[from], sizeof out);
  return out;
}
unsigned ballot(unsigned mask, int predicate, Site site);

// ---- Checks -------------------------------------------------------------------------------------

// For an access that the compiler did not see as one.
void check_access(const void* at, size_t bytes, size_t alignment, bool write);
// An access that races with plain ones only.
void note_atomic(const void* at, size_t bytes);
template <typename T, typename Update>
BALORA_UNCHECKED T atomic(T* at, Update update) {
  note_atomic(at, sizeof(T));
  const T old = *at;
  *at = update(old);
  return old;
}

}  // namespace emulator
