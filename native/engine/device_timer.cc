#include "engine/device_timer.h"

#include <utility>

#include "engine/kernel_failure.h"

namespace balora {

DeviceTimer::~DeviceTimer() {
  drop();
}

void* DeviceTimer::mark(Context* ctx) {
  void* made = nullptr;
  if (kernels_->record(ctx, &made) != 0) throw kernel_failure(ctx->error, "a mark cannot be made");
  return made;
}

void DeviceTimer::begin(Context* ctx) {
  if (open_) kernels_->unmark(open_);  // of an op that failed
  open_ = nullptr;
  open_ = mark(ctx);
}

void DeviceTimer::end(Context* ctx, int phase, const char* op) {
  ops_.push_back({.from = std::exchange(open_, nullptr),
                  .phase = phase,
                  .op = op,
                  .implementation = ctx->implementation});
  ops_.back().to = mark(ctx);
}

void DeviceTimer::settle(OpTimes& times) {
  bool complete = true;
  for (const Timed& op : ops_) {
    double seconds = 0;
    if (op.to && kernels_->elapsed(op.from, op.to, &seconds) == 0) {
      times.add(op.phase, op.op, op.implementation, seconds);
    } else {
      complete = false;
    }
  }
  drop();
  if (!complete) throw NativeError("the device's clock did not give the time of an op");
}

void DeviceTimer::drop() {
  for (const Timed& op : ops_) {
    kernels_->unmark(op.from);
    if (op.to) kernels_->unmark(op.to);
  }
  ops_.clear();
  if (open_) kernels_->unmark(std::exchange(open_, nullptr));
}

}  // namespace balora
