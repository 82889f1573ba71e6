// How a kernel of the CPU that takes long learns that nobody wants its results any more.
#pragma once
#include "kernels/cpu/runtime/stream_state.h"

namespace balora {

// The flag at which the kernels of a CPU's state (Context::device_state) look from now on; null:
// they run to their ends. Engine thread.
inline void set_stop_flag(void* state, const std::atomic<bool>* flag) {
  static_cast<StreamState*>(state)->stop = flag;
}

// Whether the flag is set. For loops whose turns take some milliseconds; any thread of the kernel.
// A kernel that leaves such a loop early returns as ever, and its outputs are given up: what it did
// not write it must not take for indices.
inline bool is_stopped(const Context* ctx) {
  const StreamState* const state = StreamState::of(ctx);
  return state && state->stop && state->stop->load(std::memory_order_relaxed);
}

}  // namespace balora
