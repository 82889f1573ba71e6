// Counts the scratch that a row takes: where two ways give the same result, it shows which one ran,
// so that a broken way does not hide behind the one it falls back to.
#pragma once
#include <algorithm>

#include "support/device_test.h"

namespace balora::test {

class WorkspaceSpy {
 public:
  explicit WorkspaceSpy(DeviceTest& test) {
    Context* ctx = test.device_context();
    original_ = ctx->workspace;
    total_ = largest_ = 0;
    ctx->workspace = [](Context* asking, uint64_t bytes) {
      total_ += static_cast<int64_t>(bytes);
      largest_ = std::max(largest_, static_cast<int64_t>(bytes));
      return original_(asking, bytes);
    };
  }
  int64_t total() const { return total_; }      // bytes
  int64_t largest() const { return largest_; }  // bytes of one request

 private:
  static inline void* (*original_)(Context*, uint64_t) = nullptr;
  static inline int64_t total_ = 0, largest_ = 0;
};

}  // namespace balora::test
