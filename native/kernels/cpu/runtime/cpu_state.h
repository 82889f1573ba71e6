// The state that the CPU device keeps between the kernels of one stream: oneDNN's engine and
// stream, a cache of its primitives, and scratch memory. The engine holds it as a void*;
// cpu_state.cc defines it.
#pragma once
#include <cstdint>

namespace balora {

void* create_cpu_state(int32_t device_index, char* error, uint64_t error_size);
void destroy_cpu_state(void* state);

// From now on every scratch buffer is handed out full of NaN patterns (0xff), as recycled memory
// may be: for tests of what kernels read without having written it.
void poison_cpu_scratch(void* state);

}  // namespace balora
