// Scratch memory of one row that is given back and taken again while the row runs: the engine
// releases a workspace only when the row returns, which an iteration cannot wait for. Work on the
// stream runs in order, so a buffer may have a new owner as soon as its last use is enqueued.
#pragma once
#include <map>
#include <utility>

#include "runtime/common.cuh"

namespace balora::cuda {

class Scratch {
 public:
  explicit Scratch(Context* ctx) : ctx_(ctx) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  Context* ctx() const { return ctx_; }

  // At least `bytes`, aligned to 64; *size is what give() wants back.
  void* take(int64_t bytes, int64_t* size) {
    const auto found = free_.lower_bound(bytes);
    if (found != free_.end() && found->first <= 2 * bytes + 4096) {
      void* data = found->second;
      *size = found->first;
      free_.erase(found);
      return data;
    }
    *size = (std::max<int64_t>(bytes, 1) + 63) / 64 * 64;
    return workspace<unsigned char>(ctx_, *size);
  }
  void give(void* data, int64_t size) { free_.emplace(size, data); }

 private:
  Context* ctx_;
  std::multimap<int64_t, void*> free_;
};

// Elements of T on the device that go back to the scratch with this object.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Scratch& scratch, int64_t count) : scratch_(&scratch) {
    data_ = static_cast<T*>(scratch.take(count * static_cast<int64_t>(sizeof(T)), &size_));
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_) scratch_->give(data_, size_);
  }
  T* data() const { return data_; }

 private:
  void swap(Buffer& other) {
    std::swap(scratch_, other.scratch_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  Scratch* scratch_ = nullptr;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

inline void clear_flags(Context* ctx, int32_t* flags, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof *flags;
  check_stream(ctx, cudaMemsetAsync(flags, 0, bytes, stream_of(ctx)), "clear_flags");
}

}  // namespace balora::cuda
