// Rotary position embedding in the rotate-half convention of the HF checkpoints.
#pragma once
#include "kernels/shared/host_device.h"

namespace balora {

// Channels i and i + Drot/2 of a head.
template <typename A>
struct RotaryPair {
  A first, second;
};

// The pair rotated by the angle with this cosine and sine. By value: through references, GCC
// vectorises the CPU's loop over f32 and f64 with 16 bytes instead of 64.
template <typename A>
BALORA_HOST_DEVICE RotaryPair<A> rotated(A first, A second, A cosine, A sine) {
  return {first * cosine - second * sine, second * cosine + first * sine};
}

}  // namespace balora
