// Hands out parts of one block of memory, each aligned to a cache line. Without a block it only
// counts: code that lays memory out runs twice, first to learn how much it needs.
#pragma once
#include <cstdint>

namespace balora {

class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  // The next part of the block, also where it has no elements; null without a block.
  template <typename T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ += bytes<T>(count);
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

  // Bytes of a part.
  template <typename T>
  static int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
  }

 private:
  static constexpr int64_t kLine = 64;

  char* base_;
  int64_t used_ = 0;
};

}  // namespace balora
