// The memory behind one or more tensors. A storage is born without memory: the engine thread
// allocates when the op that writes it runs, so an op queue that is far ahead holds no memory. The
// last reference frees it, on any thread.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "tensor/view.h"

namespace balora {

class Int8Activation;

// Where memory comes from; the engine's caching allocator implements it. Thread safe.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  virtual void* allocate(int64_t bytes, int tag) = 0;  // throws NativeError when there is none
  virtual void release(void* data, int64_t bytes, int tag) = 0;
  // Adds to, or takes from, the statistics of layouts that devices derived from frozen tensors.
  virtual void account_derived(int64_t bytes) = 0;
};

// Memory that something else owns and may change, as the pages of a file.
class ExternalMemory {
 public:
  virtual ~ExternalMemory() = default;
  // Throws FileChangedError where the values are not those that they were at first. Thread safe.
  virtual void refuse_changed() const = 0;
  // The same by what the system says of the memory alone, which takes microseconds: no value is
  // read, and nothing is waited for. A change that a program hid may not show.
  virtual void refuse_rewritten() const = 0;
};

// A use of offloaded memory by one op. Made when the op is enqueued, which says what will be read,
// and destroyed when the op has run, or never will.
class MemoryUse {
 public:
  virtual ~MemoryUse() = default;
  virtual void begin() = 0;  // its op is the next to run
  // Waits until the bytes are there; after begin() of every use of the op. Engine thread.
  virtual void await() = 0;
};

// External memory whose bytes are there only around the ops that use them (io/offload.h).
class OffloadedMemory {
 public:
  virtual ~OffloadedMemory() = default;
  virtual std::unique_ptr<MemoryUse> announce() = 0;  // on the enqueueing thread
};

class Storage {
 public:
  Storage(std::shared_ptr<MemorySource> source, int64_t bytes, int tag)
      : source_(std::move(source)), bytes_(bytes), tag_(tag) {}

  // Memory that `owner` (a mapped file) keeps alive, never written. `source` keeps the statistics.
  Storage(std::shared_ptr<MemorySource> source, void* data, int64_t bytes,
          std::shared_ptr<const ExternalMemory> owner)
      : source_(std::move(source)), owner_(std::move(owner)), data_(data), bytes_(bytes) {}

  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  ~Storage() {
    drop_derived();
    empty(versioned_);
    if (!owner_ && data_) source_->release(data_, bytes_, tag_);
  }

  void* data() const { return data_.load(std::memory_order_acquire); }
  bool has_data() const { return bytes_ == 0 || data() != nullptr; }
  int64_t bytes() const { return bytes_; }
  bool external() const { return owner_ != nullptr; }
  const std::shared_ptr<const ExternalMemory>& owner() const { return owner_; }  // null: its own

  // Engine thread only.
  void ensure_allocated() {
    if (!data_ && bytes_ > 0)
      data_.store(source_->allocate(bytes_, tag_), std::memory_order_release);
  }
  // The op that was to write here failed: there is no value.
  void drop_data() {
    if (owner_) return;
    if (void* data = data_.exchange(nullptr)) source_->release(data, bytes_, tag_);
  }
  // Whether an op that was to write here was aborted: there is no value, or one that is half
  // written, until an op has written all of it. Set on the engine thread.
  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  void set_aborted(bool value) { aborted_.store(value, std::memory_order_release); }
  balora_slot* slots() { return slots_.data(); }
  balora_slot* versioned() { return &versioned_; }
  // Frees the layouts that the device derived from the values.
  void drop_derived() {
    for (balora_slot& slot : slots_) {
      empty(slot);
      slot = {};
    }
  }

  // JS thread only: writes seen so far (a saved tensor compares it), tensors that share this
  // storage, and whether its values are promised not to change (so that devices may
  // keep derived layouts).
  int64_t version = 0;
  int tensor_count = 0;
  bool frozen = false;
  // The codes in int8 that a backward pass keeps of the values (tape/int8_activation.h).
  std::weak_ptr<const Int8Activation> int8_activation;
  // How values are found in the bytes; null: the bytes are the values. Set before the first op.
  std::shared_ptr<const balora_encoding> encoding;
  // Null: the bytes are always there. JS thread only, in the order of the ops.
  std::shared_ptr<OffloadedMemory> offloaded;

 private:
  void empty(balora_slot& slot) {
    if (!slot.data) return;
    slot.destroy(slot.data);
    source_->account_derived(-slot.bytes);
  }

  std::shared_ptr<MemorySource> source_;
  std::shared_ptr<const ExternalMemory> owner_;
  std::atomic<void*> data_{nullptr};
  std::atomic<bool> aborted_{false};
  int64_t bytes_ = 0;
  int tag_ = 0;
  std::array<balora_slot, BALORA_SLOTS> slots_{};
  balora_slot versioned_{};
};

}  // namespace balora
