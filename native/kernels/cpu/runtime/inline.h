// Functions that the loops of levels.h and the tile kernels are made of: what is not inlined into
// them would be compiled for the lowest level of the processor.
#pragma once

#define BALORA_INLINE inline __attribute__((always_inline))
