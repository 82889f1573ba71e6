// The instructions that products may use, and what is written for a level by hand. Loops over rows
// (simd.h) and decoders of files go by what the CPU has.
#pragma once

namespace balora {

// Each level with those before it: what the CPU has and gains from, or less where the environment's
// ONEDNN_MAX_CPU_ISA says so (read once, at the first question).
enum class CpuLevel { kPlain, kAvx2, kAvx512, kAvx512Bf16, kAmx };
CpuLevel cpu_level();
// Its name: "plain", "avx2", "avx512", "avx512_bf16", "amx".
const char* cpu_level_name();

// True where bf16 x bf16 -> f32 runs on instructions made for it (AVX512-BF16, AMX); else, and
// where these are slower, bf16 is widened to f32.
inline bool cpu_multiplies_bf16() {
  return cpu_level() >= CpuLevel::kAvx512Bf16;
}
// True where those instructions are AMX tiles.
inline bool cpu_has_amx() {
  return cpu_level() >= CpuLevel::kAmx;
}

// Whether the CPU has what functions in AVX2 (with FMA and BMI2) and in AVX-512 (F, BW, VL, DQ) are
// compiled for, whatever the limit.
bool machine_has_avx2();
bool machine_has_avx512();

// AVX512-FP16 within the limit, for a oneDNN that does not know it: of the limits that leave bf16
// to products, AVX512_CORE_BF16 alone is below it.
bool fp16_within_limit();

// The same within the limit.
bool cpu_has_avx2();
bool cpu_has_avx512();

}  // namespace balora
