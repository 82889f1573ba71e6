// The state of a CPU stream (runtime/stream_state.h), for those that make contexts.
#pragma once
#include <cstdint>

namespace balora {

// A StreamState; null with a message where oneDNN fails.
void* create_cpu_state(int32_t device_index, char* error, uint64_t error_size);
void destroy_cpu_state(void* state);

// From now on every scratch buffer is handed out full of NaN patterns (0xff), as recycled memory
// may be: for tests of what kernels read without having written it.
void poison_cpu_scratch(void* state);

}  // namespace balora
