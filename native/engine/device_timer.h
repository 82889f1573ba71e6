// Seconds of ops by the device's own clock, where it has one: a mark with the time before and after
// each op's kernels, read once the device has been waited for. While the host keeps the stream's
// queue full, only the kernels lie between their marks; where the queue was empty, the time of the
// launch does too (some microseconds).
#pragma once
#include <vector>

#include "engine/op_times.h"
#include "kernels/kernel_table.h"

namespace balora {

class DeviceTimer {
 public:
  explicit DeviceTimer(const KernelTable* kernels) : kernels_(kernels) {}
  ~DeviceTimer();
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;

  bool available() const { return kernels_->record && kernels_->elapsed; }
  // Around one op's launches. Throw what the device says.
  void begin(Context* ctx);
  void end(Context* ctx, int phase, const char* op);
  bool full() const { return ops_.size() >= kMostOps; }  // time to wait for the device
  // After the device has been waited for: adds what was timed.
  void settle(OpTimes& times);
  void drop();  // everything, as after a failure

 private:
  static constexpr size_t kMostOps = 4096;
  struct Timed {
    void* from;
    void* to = nullptr;
    int phase;
    const char* op;
    const char* implementation;
  };
  void* mark(Context* ctx);

  const KernelTable* kernels_;
  void* open_ = nullptr;
  std::vector<Timed> ops_;
};

}  // namespace balora
