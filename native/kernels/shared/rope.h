// Rotary position embedding in the rotate-half convention of the HF checkpoints.
#pragma once
#include "kernels/shared/host_device.h"

namespace balora {

// Channels i and i + Drot/2 of a head, rotated by the angle with this cosine and sine.
template <typename A>
BALORA_HOST_DEVICE void rotate_pair(A cosine, A sine, A& first, A& second) {
  const A rotated = first * cosine - second * sine;
  second = second * cosine + first * sine;
  first = rotated;
}

}  // namespace balora
