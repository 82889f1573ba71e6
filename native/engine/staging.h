// The host's side of copies to and from a device with memory of its own: pinned memory, so that a
// copy runs in stream order while the thread that asked for it goes on.
//
// Whole tensors travel in blocks of a pool, which anybody may fill or read on any thread and which
// return when the device is done with them. What finds no block (the pool is bounded) goes chunk by
// chunk through the few buffers of a ring, whose owner, the engine's thread, waits for the oldest.
#pragma once
#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/kernel_table.h"

namespace balora {

class PinnedPool;

// Pinned memory that is the holder's alone, and perhaps a copy's that is under way.
class PinnedBlock {
 public:
  PinnedBlock(std::shared_ptr<PinnedPool> pool, void* data, int64_t size)
      : pool_(std::move(pool)), data_(data), size_(size) {}
  PinnedBlock(const PinnedBlock&) = delete;
  PinnedBlock& operator=(const PinnedBlock&) = delete;
  ~PinnedBlock();  // it may be taken again once its last copy has run

  void* data() const { return data_; }
  const KernelTable* kernels() const;

  // Engine thread of `ctx`. `device_state` owns the stream that copies.
  int32_t copy_in(Context* ctx, void* device, int64_t bytes,
                  const std::shared_ptr<void>& device_state);
  int32_t copy_out(Context* ctx, const void* device, int64_t bytes,
                   const std::shared_ptr<void>& device_state);
  // Waits for the copy that was begun last; throws NativeError where the device failed before it.
  void await();

 private:
  int32_t set_mark(Context* ctx, const std::shared_ptr<void>& device_state);

  std::shared_ptr<PinnedPool> pool_;
  void* data_;
  int64_t size_;
  void* mark_ = nullptr;
  std::shared_ptr<void> marked_by_;
};

// Thread safe.
class PinnedPool : public std::enable_shared_from_this<PinnedPool> {
 public:
  static constexpr int64_t kMostBytes = int64_t{64} << 20;     // held, in use or not
  static constexpr int64_t kLargestBytes = int64_t{16} << 20;  // of one block

  PinnedPool(const KernelTable* kernels, std::shared_ptr<void> device_state)
      : kernels_(kernels), device_state_(std::move(device_state)) {}
  ~PinnedPool();

  // At least so many bytes, at once; null where that would go beyond the bounds or the device has
  // no pinned memory.
  std::unique_ptr<PinnedBlock> take(int64_t bytes);
  int64_t held_bytes() const;

 private:
  friend class PinnedBlock;
  struct Pending {
    void* data;
    int64_t size;
    void* mark;
    std::shared_ptr<void> marked_by;
  };
  void give(Pending block);
  void collect();  // what the device is done with
  bool make_room(int64_t size);

  const KernelTable* kernels_;
  std::shared_ptr<void> device_state_;
  mutable std::mutex mutex_;
  std::multimap<int64_t, void*> free_;  // by size
  std::list<Pending> pending_;
  int64_t held_ = 0;
};

// Engine thread only.
class StagingRing {
 public:
  static constexpr int64_t kChunkBytes = int64_t{4} << 20;
  static constexpr size_t kChunks = 4;

  StagingRing(const KernelTable* kernels, std::shared_ptr<void> device_state)
      : kernels_(kernels), device_state_(std::move(device_state)) {}
  ~StagingRing();

  // Any memory of the host. send() returns when it has read the bytes, fetch() when they are there.
  void send(Context* ctx, void* device, const void* host, int64_t bytes);
  void fetch(Context* ctx, void* host, const void* device, int64_t bytes);

  // A buffer of kChunkBytes to fill, when the device is done with what was in it; and its way to
  // the device, which empties it.
  void* fill();
  void send_filled(Context* ctx, void* device, int64_t bytes);

 private:
  struct Chunk {
    void* data = nullptr;
    void* mark = nullptr;
  };
  Chunk& at(int64_t turn);  // made at its first use
  void settle(Chunk& chunk);
  void mark(Context* ctx, Chunk& chunk);

  const KernelTable* kernels_;
  std::shared_ptr<void> device_state_;
  std::array<Chunk, kChunks> chunks_;
  int64_t turn_ = 0;
};

}  // namespace balora
