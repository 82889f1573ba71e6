// The emulated twins of the instructions in cuda/device/instructions.cuh.
#pragma once
#include <cstdint>

#include "emulator.h"

namespace emulator {

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
uint16_t float_to_bf16(float value);
uint32_t pack_bf16(float low, float high);
uint32_t pack_f16(float low, float high);
float exp2_approx(float x);

// A copy happens when its group is waited for, so that a read before the wait sees old bytes; the
// checks know what is under way.
void cp_async16(void* shared, const void* global, int valid = 16);
void cp_async_commit();
void cp_async_wait_until(int pending);
template <int N>
BALORA_UNCHECKED void cp_async_wait() {
  cp_async_wait_until(N);
}

void ldmatrix_x4(uint32_t (&out)[4], const void* shared, BALORA_HERE);
void ldmatrix_x4_trans(uint32_t (&out)[4], const void* shared, BALORA_HERE);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BALORA_HERE);
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BALORA_HERE);
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BALORA_HERE);

}  // namespace emulator
