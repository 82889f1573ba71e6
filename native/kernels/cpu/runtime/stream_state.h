// The state that the CPU device keeps between the kernels of one stream. The engine holds it as a
// void*; the state of a family (products' CpuState) derives from it.
#pragma once
#include <atomic>

#include "kernels/cpu/runtime/scratch.h"
#include "kernels/kernel_table.h"

namespace balora {

struct StreamState {
  virtual ~StreamState() = default;

  ScratchPool scratch;
  const std::atomic<bool>* stop = nullptr;  // runtime/stop.h

  // Null in a context without a state, as some tests have it.
  static StreamState* of(const Context* ctx) {
    return static_cast<StreamState*>(ctx->device_state);
  }
};

}  // namespace balora
